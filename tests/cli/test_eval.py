"""``mgm eval`` as a user meets it: a folder, a table, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mg_milvus.cli.app import app
from tests.conftest import make_photos

RUNNER = CliRunner()
SHORT = ("--bits", "coarse=32,mid=64")


def test_a_folder_becomes_a_table_json_and_a_report(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=6)
    (photos / "disc" / "broken.jpg").write_bytes(b"nothing")
    (photos / "stray.jpg").write_bytes((photos / "disc" / "00.jpg").read_bytes())
    done = RUNNER.invoke(app, ["eval", str(photos), *SHORT, "--report", str(tmp_path / "report")])
    assert done.exit_code == 3, done.output
    lines = done.stdout.splitlines()
    assert "queries: 18" in lines
    header = next(line for line in lines if "mAP@R" in line).split()
    rows = {line.split()[0]: line.split() for line in lines if line.split()[:1] in (["coarse"], ["mid"], ["float"])}
    assert header[:4] == ["mAP", "mAP≥", "mAP≤", "mAP@R"]
    assert set(rows) == {"coarse", "mid", "float"}
    assert any("broken.jpg" in line for line in lines)
    assert any("stray.jpg: no label" in line for line in lines)
    assert "<html" in (tmp_path / "report" / "index.html").read_text()

    as_json = RUNNER.invoke(app, ["eval", str(photos), *SHORT, "--heads", "fixed", "--json"])
    assert as_json.exit_code == 3, as_json.output
    figures = json.loads(as_json.stdout)
    assert {"queries", "database", "granularities", "fused", "float"} <= set(figures)
    assert list(figures["granularities"]) == ["coarse", "mid"]
    # 18 images are too few to fit heads on: both runs used the encoder's own.
    first = figures["granularities"]["mid"]
    assert f"{first['map']:.3f}" in done.stdout
    assert figures["heads"] == "the encoder's own"


def test_seeds_lists_and_tables_for_a_paper(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=6)
    done = RUNNER.invoke(
        app, ["eval", str(photos), *SHORT, "--protocol", "split", "--share", "0.3", "--seeds", "2", "--map-at", "5",
              "--table", "latex"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "% seeds: 0, 1; means and standard deviations over them" in lines
    assert next(line for line in lines if "mAP@5" in line).startswith(" & mAP@5 & mAP & mAP@R & ")
    assert r"$\pm$" in next(line for line in lines if line.startswith("coarse & "))

    for name, part in (("database", slice(0, 4)), ("test", slice(4, 6))):
        files = [file for kind in sorted(photos.iterdir()) for file in sorted(kind.iterdir())[part]]
        rows = [f"{file.relative_to(photos)} {file.parent.name}" for file in files]
        (tmp_path / f"{name}.txt").write_text("\n".join(rows))
    lists = f"{tmp_path / 'database.txt'},{tmp_path / 'test.txt'}"
    done = RUNNER.invoke(app, ["eval", str(photos), *SHORT, "--lists", lists, "--table", "markdown"])
    assert done.exit_code == 0, done.output
    assert "- queries: 6" in done.stdout
    assert any(line.startswith("| mid |") for line in done.stdout.splitlines())


def test_a_run_folder_and_codes(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=4)
    run, codes = tmp_path / "runs" / "first", tmp_path / "codes.npz"
    command = ["eval", str(photos), *SHORT, "--heads", "fixed", "--run", str(run)]
    done = RUNNER.invoke(app, [*command, "--codes", str(codes)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"Kept in {run}"
    assert np.load(codes)["codes_mid"].shape == (12, 64)
    done = RUNNER.invoke(app, command)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, f"The metrics are, to the bit, those in {run}")

    (run / "metrics.json").write_text((run / "metrics.json").read_text().replace('"queries": 12', '"queries": 11'))
    done = RUNNER.invoke(app, [*command, "--table", "markdown"])
    assert (done.exit_code, "- queries: 12" in done.stdout) == (1, True)
    assert done.stderr.endswith(
        f"mgm: the metrics differ from those in '{run}', which is left as it is: queries was 11, now 12\n"
    )
    done = RUNNER.invoke(app, [*command, "--map-at", "5"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "holds a run of another configuration: map_at was null, now 5" in done.stderr
    done = RUNNER.invoke(app, ["eval", str(photos), "--codes", "codes.csv"])
    assert (done.exit_code, "expected .npz or .mat" in done.stderr) == (1, True)


def test_zero_shot_takes_a_share_or_a_file(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=4)
    (tmp_path / "seen.txt").write_text("disc\n")
    for seen in ("0.4", str(tmp_path / "seen.txt")):
        done = RUNNER.invoke(app, ["eval", str(photos), *SHORT, "--protocol", "zero-shot", "--seen", seen, "--json"])
        assert done.exit_code == 0, done.output
        figures = json.loads(done.stdout)
        assert (len(figures["seen"]), figures["queries"], figures["database"]) == (1, 2, 6)
    assert figures["seen"] == ["disc"]


def test_copies_need_no_labels(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=2)
    for number, image in enumerate(sorted(photos.rglob("*.jpg"))):
        image.rename(photos / f"{number}.jpg")
    done = RUNNER.invoke(app, ["eval", str(photos), "--protocol", "copies", "--copies", "2", *SHORT])
    assert done.exit_code == 0, done.output
    assert "recall@1 of edited copies" in done.stdout
    assert any(line.split()[:2] == ["jpeg,", "mild"] for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "'nowhere' does not exist"),
        (("one",), "are of one class, 'a'"),
        (("bare",), "have no labels"),
        (("two", "--bits", "hue=32"), "no granularity 'hue'"),
        (("two", "--protocol", "cifar10-2"), "no folders train/ and test/"),
        (("two", "--labels", "missing.csv"), "missing.csv"),
        (("two", "--lists", "a.txt,b.txt"), "the list 'a.txt' cannot be read"),
        (("two", "--protocol", "zero-shot", "--seen", "a.txt"), "'a.txt' cannot be read"),
        (("two", "--seeds", "3"), "there are 3 seeds, expected 1"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    for folder in ("one/a", "bare", "two/a", "two/b"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    done = RUNNER.invoke(app, ["eval", *arguments])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("mgm: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_wrong_code_length_is_wrong_usage(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["eval", str(tmp_path), "--bits", "coarse=33"])
    assert done.exit_code == 2
    assert "coarse=33 is not a code length" in " ".join(done.stderr.split())
    done = RUNNER.invoke(app, ["eval", str(tmp_path), "--depth", "10"])
    assert (done.exit_code, "--through-index" in done.stderr) == (2, True)
    done = RUNNER.invoke(app, ["eval", str(tmp_path), "--table", "latex", "--json"])
    assert (done.exit_code, "choose one" in done.stderr) == (2, True)


def test_help_shows_the_protocols() -> None:
    done = RUNNER.invoke(app, ["eval", "--help"])
    assert done.exit_code == 0
    assert "cifar10-2" in done.stdout
