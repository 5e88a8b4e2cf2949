"""The committed figures say where they come from, and the short form of the benchmarks compares with them."""

from __future__ import annotations

import importlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/bench.py``, as it sees itself: its folder is on the path, and its working folder does not matter."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("bench")


def test_the_short_form_has_committed_figures() -> None:
    assert BENCHMARKS / "results" / "bench.json" in RESULTS


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
def test_a_committed_result_says_where_it_comes_from(file: Path) -> None:
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["machine"]["processor"]
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["memory_gb"] > 0
    assert result["machine"]["system"]
    assert {"python", "mg-milvus", "numpy", "pymilvus", "milvus-lite", "torch"} <= result["versions"].keys()
    assert datetime(2025, 1, 1, tzinfo=UTC) < datetime.fromisoformat(result["date"])
    script = re.fullmatch(r"python (benchmarks/\w+\.py)( .*)?", result["command"])
    assert script
    assert (BENCHMARKS.parent / script[1]).is_file()
    assert not re.search(r"(^| )/", result["command"]), "no folder of somebody's machine"
    assert result["figures"]


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
def test_a_committed_result_is_named_where_figures_are_explained(file: Path) -> None:
    assert f"results/{file.name}" in (BENCHMARKS / "README.md").read_text(encoding="utf-8")


def test_every_ratio_is_committed_and_explained(bench: ModuleType) -> None:
    committed = json.loads(bench.KEPT.read_text(encoding="utf-8"))["figures"]
    assert committed.keys() == {name for part in bench.MEANING.values() for name in part}
    for name, own in committed.items():
        assert 0 < own["least"] <= own["ratio"] <= own["most"], name


def test_a_ratio_that_fell_by_more_than_15_percent_is_warned_of(bench: ModuleType) -> None:
    kept = {"fusion": 2.0, "upsert": 1.0, "ingest": 0.8, "packing": 1.0}
    lines, warnings = bench.compared({"fusion": 1.69, "upsert": 0.86, "ingest": 0.9, "details": 0.7}, kept)
    assert warnings == ["warning: 'fusion' fell by 16%: 2 committed, 1.69 now"]
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["fusion", "2", "1.69", "-16%"], ["upsert", "1", "0.86", "-14%"], ["ingest", "0.8", "0.9", "+12%"],
    ]  # fmt: skip
    assert lines[4].split()[:2] == ["details", "0.7"]  # nothing to compare with


def test_what_fell_is_measured_again_before_it_is_warned_of(bench: ModuleType) -> None:
    kept = {"fusion": 2.0, "packing": 1.0, "upsert": 1.0, "cold query": 1.0}
    asked = []

    def again(parts: list[str]) -> dict[str, float]:
        asked.append(parts)
        return {"fusion": 1.9, "packing": 5.0, "distances": 5.0, "upsert": 0.4}

    now = {"fusion": 1.0, "packing": 0.9, "upsert": 1.0, "details": 0.1}
    assert bench.looked_again(now, kept, again) == now | {"fusion": 1.9}
    assert asked == [["pure"]]
    assert bench.looked_again({"fusion": 1.7}, kept, again) == {"fusion": 1.7}
    assert asked == [["pure"]]


def test_the_short_form_runs(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, written = tmp_path / "kept.json", tmp_path / "new.json"
    short = ["--only", "pure", "--seconds", "0", "--rounds", "1"]
    bench.main([*short, "--json", str(kept)])
    result = json.loads(kept.read_text())
    assert result["command"].startswith("python benchmarks/")
    assert result["figures"].keys() == bench.MEANING["pure"].keys()
    result["figures"]["distances"]["ratio"] *= 100
    result["machine"]["processor"] = "abacus"
    kept.write_text(json.dumps(result))
    capsys.readouterr()

    bench.main([*short, "--against", str(kept), "--json", str(written)])
    said = capsys.readouterr().out
    assert re.search(r"^warning: 'distances' fell by 9\d%: ", said, re.MULTILINE), said
    assert "something fell: measuring pure again" in said
    assert "committed on abacus" in said
    assert json.loads(written.read_text())["figures"].keys() == result["figures"].keys()


def test_a_folder_that_is_not_there_is_refused(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        bench.main(["--images", "nowhere"])
    assert refused.value.code == 2
    assert "--images nowhere is no folder; expected one that holds class/image" in capsys.readouterr().err
