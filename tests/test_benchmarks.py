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


QUOTED = {
    ("README.md", "beside_floats"): [
        "{rows|,} rows in Milvus Lite, exact search on both sides.",
        "{dimensions|,} float features, FLAT",
        "| written, processor time a row | {sides > floats > written us|.0f} µs | {sides > mg-milvus > written us|.0f} "
        "µs | {floats over > mg-milvus > written us|.1f} × |",
        "| a query, processor time | {sides > floats > query ms|.1f} ms | {sides > mg-milvus > query ms|.1f} ms | "
        "{floats over > mg-milvus > query ms|.1f} × as fast |",
        "| file, bytes an image | {sides > floats > file bytes|,.0f} | {sides > mg-milvus > file bytes|,.0f} | "
        "1/{floats over > mg-milvus > file bytes|.1f} |",
        "| memory, bytes an image | {sides > floats > memory bytes|,.0f} | {sides > mg-milvus > memory bytes|,.0f} | "
        "1/{floats over > mg-milvus > memory bytes|.1f} |",
    ],
    ("docs/benchmarks.md", "beside_floats"): [
        "| {dimensions|,} floats, FLAT, and the file's name | {sides > floats > written us|.0f} µs | "
        "{sides > floats > query ms|.1f} ms | {sides > floats > file bytes|,.0f} B | "
        "{sides > floats > memory bytes|,.0f} B |",
        "| mg-milvus: all columns; three granularities and their fusion | {sides > mg-milvus > written us|.0f} µs | "
        "{sides > mg-milvus > query ms|.1f} ms | {sides > mg-milvus > file bytes|,.0f} B | "
        "{sides > mg-milvus > memory bytes|,.0f} B |",
        "| the floor: key, path and codes alone; three bare searches | {sides > floor > written us|.0f} µs | "
        "{sides > floor > query ms|.1f} ms | {sides > floor > file bytes|,.0f} B | "
        "{sides > floor > memory bytes|,.0f} B |",
        "`content_hash` {bytes of a row > content_hash}, the three tags {bytes of a row > tag_1} each",
        "the text copy of the codes {bytes of a row > _codes}",
    ],
    ("docs/benchmarks.md", "numpy_work"): [
        "| candidates for near-duplicates among {codes|,} codes | {duplicates > seconds|.0f} s of a processor, "
        "{duplicates > memory MB|.0f} MB |",
        "| fusion of 3 × 1,000 | {fusion > ms|.2f} ms |",
        "| evaluation, {queries|,} queries × {rows|,} rows: three granularities | {evaluation > codes s|.0f} s of a "
        "processor |",
        "| the same with all fusions and profiles | {evaluation > codes and fusions s|.0f} s |",
    ],
    ("docs/benchmarks.md", "clients"): [
        "{16 processes > queries/s|.0f} queries/s, p50 {16 processes > p50 ms|.0f} ms, "
        "p99 {16 processes > p99 ms|.0f} ms",
    ],
    ("docs/benchmarks.md", "store_overhead"): [
        "| {upsert_ratio|.2f} of the time of `MilvusClient.upsert`, {query_ratio|.2f} of the bare searches |",
    ],
    ("docs/benchmarks.md", "ingest_rate"): [
        "| {ingest, images/s|.0f} images/s: {ratio|.2f} of decoding and encoding alone |",
    ],
    ("docs/benchmarks.md", "growth"): [
        "| {sizes > 10000 > ms > full, rank > p50|.1f} / {sizes > 10000 > ms > full, rank > p99|.1f} ms | "
        "{sizes > 100000 > ms > full, rank > p50|.1f} / {sizes > 100000 > ms > full, rank > p99|.1f} ms | "
        "{sizes > 1000000 > ms > full, rank > p50|.1f} / {sizes > 1000000 > ms > full, rank > p99|.1f} ms |",
        "| {sizes > 10000 > start-up > work s|.1f} s | {sizes > 100000 > start-up > work s|.1f} s | "
        "{sizes > 1000000 > start-up > work s|.1f} s |",
        "| {sizes > 10000 > ten new images > work s|.1f} s, {sizes > 10000 > ten new images > client peak MB|.0f} MB | "
        "{sizes > 100000 > ten new images > work s|.1f} s, ",
    ],
    ("docs/benchmarks.md", "losses"): [
        "learns from {images > learned} images of the ten classes of CIFAR-10 in {epochs} passes; {images > queries} "
        "others",
        "have {floats > mean|.3f} ± {floats > deviation|.3f}",
        *(
            " | ".join(
                [
                    f"| {name}",
                    *(
                        f"{{recipes > {recipe} > {name.lower()} > {measure} > mean|.3f}} ± "
                        f"{{recipes > {recipe} > {name.lower()} > {measure} > deviation|.3f}}"
                        for recipe in ("ours", "paper")
                        for measure in ("map", "within_radius_2")
                    ),
                    "",
                ]
            ).rstrip()
            for name in ("DSH", "HashNet", "GreedyHash", "CSQ", "OrthoHash")
        ),
    ],
    ("docs/benchmarks.md", "fusion"): [
        "| `coarse` | {corel1k, default > ways > coarse > map|.4f} best | {c200, default > ways > coarse > "
        "map|.4f} best | {tiny-imagenet, default > ways > coarse > map|.4f} = | {cifar10, default > ways > coarse"
        " > map|.4f} best |",
        "| `mid` | {corel1k, default > ways > mid > map|.4f} {corel1k, default > ways > mid > best single > "
        "difference|+.4f} | {c200, default > ways > mid > map|.4f} {c200, default > ways > mid > best single > "
        "difference|+.4f} | {tiny-imagenet, default > ways > mid > map|.4f} best | {cifar10, default > ways > mid"
        " > map|.4f} {cifar10, default > ways > mid > best single > difference|+.4f} |",
        "| `fine` | {corel1k, default > ways > fine > map|.4f} {corel1k, default > ways > fine > best single > "
        "difference|+.4f} | {c200, default > ways > fine > map|.4f} {c200, default > ways > fine > best single > "
        "difference|+.4f} | {tiny-imagenet, default > ways > fine > map|.4f} {tiny-imagenet, default > ways > "
        "fine > best single > difference|+.4f} | {cifar10, default > ways > fine > map|.4f} {cifar10, default > "
        "ways > fine > best single > difference|+.4f} |",
        "| concatenated bits | {corel1k, default > ways > concatenated bits > map|.4f} {corel1k, default > ways >"
        " concatenated bits > best single > difference|+.4f} | {c200, default > ways > concatenated bits > "
        "map|.4f} {c200, default > ways > concatenated bits > best single > difference|+.4f} | {tiny-imagenet, "
        "default > ways > concatenated bits > map|.4f} {tiny-imagenet, default > ways > concatenated bits > best "
        "single > difference|+.4f} | {cifar10, default > ways > concatenated bits > map|.4f} {cifar10, default > "
        "ways > concatenated bits > best single > difference|+.4f} |",
        "| least rank | {corel1k, default > ways > least rank > map|.4f} {corel1k, default > ways > least rank > "
        "best single > difference|+.4f} | {c200, default > ways > least rank > map|.4f} {c200, default > ways > "
        "least rank > best single > difference|+.4f} | {tiny-imagenet, default > ways > least rank > map|.4f} "
        "{tiny-imagenet, default > ways > least rank > best single > difference|+.4f} | {cifar10, default > ways "
        "> least rank > map|.4f} {cifar10, default > ways > least rank > best single > difference|+.4f} |",
        "| by rank (default) | {corel1k, default > ways > rank > map|.4f} {corel1k, default > ways > rank > best "
        "single > difference|+.4f} | {c200, default > ways > rank > map|.4f} {c200, default > ways > rank > best "
        "single > difference|+.4f} | {tiny-imagenet, default > ways > rank > map|.4f} {tiny-imagenet, default > "
        "ways > rank > best single > difference|+.4f} | {cifar10, default > ways > rank > map|.4f} {cifar10, "
        "default > ways > rank > best single > difference|+.4f} |",
        "| profile `object` | {corel1k, default > ways > object > map|.4f} {corel1k, default > ways > object > "
        "best single > difference|+.4f} | {c200, default > ways > object > map|.4f} {c200, default > ways > "
        "object > best single > difference|+.4f} | {tiny-imagenet, default > ways > object > map|.4f} {tiny-"
        "imagenet, default > ways > object > best single > difference|+.4f} | {cifar10, default > ways > object >"
        " map|.4f} {cifar10, default > ways > object > best single > difference|+.4f} |",
        "| profile `balanced` | {corel1k, default > ways > balanced > map|.4f} {corel1k, default > ways > "
        "balanced > best single > difference|+.4f} | {c200, default > ways > balanced > map|.4f} {c200, default >"
        " ways > balanced > best single > difference|+.4f} | {tiny-imagenet, default > ways > balanced > map|.4f}"
        " {tiny-imagenet, default > ways > balanced > best single > difference|+.4f} | {cifar10, default > ways >"
        " balanced > map|.4f} {cifar10, default > ways > balanced > best single > difference|+.4f} |",
        "| by score | {corel1k, default > ways > score > map|.4f} {corel1k, default > ways > score > best single "
        "> difference|+.4f} | {c200, default > ways > score > map|.4f} {c200, default > ways > score > best "
        "single > difference|+.4f} | {tiny-imagenet, default > ways > score > map|.4f} {tiny-imagenet, default > "
        "ways > score > best single > difference|+.4f} | {cifar10, default > ways > score > map|.4f} {cifar10, "
        "default > ways > score > best single > difference|+.4f} |",
        "| by chance | {corel1k, default > ways > chance > map|.4f} {corel1k, default > ways > chance > best "
        "single > difference|+.4f} | {c200, default > ways > chance > map|.4f} {c200, default > ways > chance > "
        "best single > difference|+.4f} | {tiny-imagenet, default > ways > chance > map|.4f} {tiny-imagenet, "
        "default > ways > chance > best single > difference|+.4f} | {cifar10, default > ways > chance > map|.4f} "
        "{cifar10, default > ways > chance > best single > difference|+.4f} |",
        "| z-scores | {corel1k, default > ways > z-scores > map|.4f} {corel1k, default > ways > z-scores > best "
        "single > difference|+.4f} | {c200, default > ways > z-scores > map|.4f} {c200, default > ways > z-scores"
        " > best single > difference|+.4f} | {tiny-imagenet, default > ways > z-scores > map|.4f} {tiny-imagenet,"
        " default > ways > z-scores > best single > difference|+.4f} | {cifar10, default > ways > z-scores > "
        "map|.4f} {cifar10, default > ways > z-scores > best single > difference|+.4f} |",
        "| logistic, other half | {corel1k, default > ways > logistic, other half > map|.4f} = | {c200, default >"
        " ways > logistic, other half > map|.4f} {c200, default > ways > logistic, other half > best single > "
        "difference|+.4f} | {tiny-imagenet, default > ways > logistic, other half > map|.4f} {tiny-imagenet, "
        "default > ways > logistic, other half > best single > difference|+.4f} | {cifar10, default > ways > "
        "logistic, other half > map|.4f} {cifar10, default > ways > logistic, other half > best single > "
        "difference|+.4f} |",
    ],
    ("docs/benchmarks.md", "web_scroll"): [
        "until the first is shown, and the server's median answer | {answers > the first} ms, {answers > ms of the "
        "answer (median)} ms |",
        "the first time, and again | {seconds until the first images > at first} s, {seconds until the first images > "
        "again} s |",
        "its memory | {drop > the page's longest gap ms} ms, {drop > the server's longest answer ms} ms, "
        "{drop > server's peak memory MB} MB |",
        "{cards in the page} cards; {heap MB > at the start} to {heap MB > after all rows} MB of memory",
    ],
    ("docs/benchmarks.md", "equal_bytes"): [
        "| **mg-milvus**, queries as real codes | {corel1k > mg-milvus, 16 > mAP|.3f}, {corel1k > mg-milvus, 16 >"
        " copies recall@1|.2f} | {corel1k > mg-milvus, 32 > mAP|.3f}, {corel1k > mg-milvus, 32 > copies "
        "recall@1|.2f} | {corel1k > mg-milvus, 56 > mAP|.3f}, {corel1k > mg-milvus, 56 > copies recall@1|.2f} | "
        "{tiny-imagenet > mg-milvus, 16 > mAP|.3f}, {tiny-imagenet > mg-milvus, 16 > copies recall@1|.2f} | "
        "{tiny-imagenet > mg-milvus, 32 > mAP|.3f}, {tiny-imagenet > mg-milvus, 32 > copies recall@1|.2f} | "
        "{tiny-imagenet > mg-milvus, 56 > mAP|.3f}, {tiny-imagenet > mg-milvus, 56 > copies recall@1|.2f} |",
        "| OPQ | {corel1k > OPQ, 16 > mAP|.3f}, {corel1k > OPQ, 16 > copies recall@1|.2f} | {corel1k > OPQ, 32 > "
        "mAP|.3f}, {corel1k > OPQ, 32 > copies recall@1|.2f} | {corel1k > OPQ, 56 > mAP|.3f}, {corel1k > OPQ, 56 "
        "> copies recall@1|.2f} | {tiny-imagenet > OPQ, 16 > mAP|.3f}, {tiny-imagenet > OPQ, 16 > copies "
        "recall@1|.2f} | {tiny-imagenet > OPQ, 32 > mAP|.3f}, {tiny-imagenet > OPQ, 32 > copies recall@1|.2f} | "
        "{tiny-imagenet > OPQ, 56 > mAP|.3f}, {tiny-imagenet > OPQ, 56 > copies recall@1|.2f} |",
        "| RaBitQ | {corel1k > PCA, RaBitQ, 16 > mAP|.3f}, {corel1k > PCA, RaBitQ, 16 > copies recall@1|.2f} | "
        "{corel1k > PCA, RaBitQ, 32 > mAP|.3f}, {corel1k > PCA, RaBitQ, 32 > copies recall@1|.2f} | {corel1k > "
        "PCA, RaBitQ, 56 > mAP|.3f}, {corel1k > PCA, RaBitQ, 56 > copies recall@1|.2f} | {tiny-imagenet > PCA, "
        "RaBitQ, 16 > mAP|.3f}, {tiny-imagenet > PCA, RaBitQ, 16 > copies recall@1|.2f} | {tiny-imagenet > PCA, "
        "RaBitQ, 32 > mAP|.3f}, {tiny-imagenet > PCA, RaBitQ, 32 > copies recall@1|.2f} | {tiny-imagenet > PCA, "
        "RaBitQ, 56 > mAP|.3f}, {tiny-imagenet > PCA, RaBitQ, 56 > copies recall@1|.2f} |",
        "| PCA, ITQ | {corel1k > ITQ, 16 > mAP|.3f}, {corel1k > ITQ, 16 > copies recall@1|.2f} | {corel1k > ITQ, "
        "32 > mAP|.3f}, {corel1k > ITQ, 32 > copies recall@1|.2f} | {corel1k > ITQ, 56 > mAP|.3f}, {corel1k > "
        "ITQ, 56 > copies recall@1|.2f} | {tiny-imagenet > ITQ, 16 > mAP|.3f}, {tiny-imagenet > ITQ, 16 > copies "
        "recall@1|.2f} | {tiny-imagenet > ITQ, 32 > mAP|.3f}, {tiny-imagenet > ITQ, 32 > copies recall@1|.2f} | "
        "{tiny-imagenet > ITQ, 56 > mAP|.3f}, {tiny-imagenet > ITQ, 56 > copies recall@1|.2f} |",
    ],
    ("docs/benchmarks.md", "duplicates"): ["All of the {groups} groups held copies of one image only"],
}
"""Page, result -> what the page quotes, the figures in braces: where they are in the result, and their format."""


@pytest.mark.parametrize(("page", "result"), QUOTED, ids=lambda part: part)
def test_pages_quote_the_committed_figures(page: str, result: str) -> None:
    figures = json.loads((BENCHMARKS / "results" / f"{result}.json").read_text(encoding="utf-8"))["figures"]
    text = " ".join((BENCHMARKS.parent / page).read_text(encoding="utf-8").split())

    def figure(found: re.Match[str]) -> str:
        value = figures
        for key in found[1].split(" > "):
            value = value[key]
        return format(value, found[2] or "")

    for quoted in QUOTED[page, result]:
        assert re.sub(r"\{([^{}|]+)\|?([^{}]*)\}", figure, quoted) in text


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
