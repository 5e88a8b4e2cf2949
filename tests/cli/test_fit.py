"""``mgm fit`` and ``mgm refit`` as a user meets them: the installed command, a folder, a file."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.conftest import make_photos
from tests.forked import program
from tests.waiting import PATIENCE


def mgm(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(), *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE
    )


def test_fit_then_ingest_with_it_then_refit(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    (photos / "broken.jpg").write_bytes(b"nothing")
    fitted = mgm("fit", "photos", "--out", "mine.safetensors", "--bits", "coarse=32,fine=64", "--json", cwd=tmp_path)
    assert fitted.returncode == 3, fitted.stderr
    report = json.loads(fitted.stdout)
    assert (report["images"], len(report["failures"]), report["file"]) == (60, 1, "mine.safetensors")

    (tmp_path / "two.yaml").write_text(
        "granularities: [{name: coarse, bits: 32}, {name: fine, bits: 64}]\nencoder: {heads: fixed}\n"
    )
    done = mgm("ingest", "photos", "--encoder", "mine.safetensors", "--schema", "two.yaml", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["added"]) == (3, 60), done.stderr
    info = json.loads(mgm("info", "--json", cwd=tmp_path).stdout)
    assert (info["fingerprint"], info["bytes_per_image"]) == (report["fingerprint"], 12)

    (tmp_path / "photos" / "broken.jpg").unlink()
    again = mgm("refit", "--to", "better", "--json", cwd=tmp_path)
    assert (again.returncode, json.loads(again.stdout)["added"]) == (0, 60), again.stderr
    taken = mgm("refit", "--to", "better", "--collection", "images", cwd=tmp_path)
    assert (taken.returncode, taken.stderr.count("\n")) == (1, 1)
    assert "a collection 'better' already" in taken.stderr
    fixed = mgm("refit", "--collection", "images", cwd=tmp_path)
    assert (fixed.returncode, fixed.stderr.count("\n")) == (1, 1)
    assert "are fixed" in fixed.stderr
    asked = mgm("query", "photos/disc/00.jpg", "--collection", "better", "--json", "-k", "1", cwd=tmp_path)
    assert json.loads(asked.stdout)["distances"] == {"coarse": 0, "fine": 0}


def test_wrong_fits_end_with_one_line_and_the_remedy(tmp_path: Path) -> None:
    make_photos(tmp_path / "few", per_kind=1)
    cases = {
        ("few", "--out", "x.safetensors"): "expected at least 50",
        ("nowhere", "--out", "x.safetensors"): "nowhere",
        (
            "few",
            "--out",
            "x.safetensors",
            "--backbone",
            "resnet19",
        ): "unknown backbone 'resnet19'; known are",
        ("few", "--out", "x.safetensors", "--bits", "hue=32"): "no granularity 'hue'",
    }
    for arguments, message in cases.items():
        done = mgm("fit", *arguments, cwd=tmp_path)
        last = done.stderr.splitlines()[-1]
        assert (done.returncode, last[:5]) == (1, "mgm: "), done.stderr
        assert message in last
    assert not (tmp_path / "x.safetensors").exists()
