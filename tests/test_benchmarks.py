"""The committed figures say where they come from, and the short form of the benchmarks compares with them."""

from __future__ import annotations

import importlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mg_milvus.schema.models import Schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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


def figures_of(result: str) -> dict[str, Any]:
    return json.loads((BENCHMARKS / "results" / f"{result}.json").read_text(encoding="utf-8"))["figures"]


def tables_of(page: str) -> set[str]:
    return set((BENCHMARKS.parent / page).read_text(encoding="utf-8").splitlines())


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
        "`content_hash` {bytes of a row > content_hash}, the three tags {bytes of a row > tags} in all",
        "the text copy of the codes {bytes of a row > _codes}",
    ],
    ("docs/your-own-encoder.md", "few_labels"): [
        "{labelled} labelled thumbnails of {classes} classes of tiny-imagenet, the mAP of {others|,} other images",
        "from {means > without > mid|.3f} to {means > with > mid|.3f} by `mid` ({gains > mid > mean|.2f} ×) and from "
        "{means > without > fused|.3f} to {means > with > fused|.3f} by the fused ranking "
        "({gains > fused > mean|.2f} ×",
        "for {processor s|.0f} s of a processor",
        "from {means > other classes, without > fused|.3f} to {means > other classes, with > fused|.3f}",
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
    ("docs/benchmarks.md", "web_scroll"): [
        "until the first is shown, and the server's median answer | {answers > the first} ms, {answers > ms of the "
        "answer (median)} ms |",
        "the first time, and again | {seconds until the first images > at first} s, {seconds until the first images > "
        "again} s |",
        "its memory | {drop > the page's longest gap ms} ms, {drop > the server's longest answer ms} ms, "
        "{drop > server's peak memory MB} MB |",
        "{cards in the page} cards; {heap MB > at the start} to {heap MB > after all rows} MB of memory",
    ],
    ("docs/benchmarks.md", "peers"): [
        "`mgm encode` takes {copies > mg-milvus, codes in a file > encoding ms|.0f} ms an image",
        "{copies > mg-milvus, fitting and Milvus Lite included > search s|.0f} s of a processor for the 2,000 images",
        "{copies > imagededup CNN, same network > search s|.1f} to {copies > imagededup PHash > search s|.1f}",
        "{rankers > mg-milvus, rank > precision@10|.3f}, {rankers > mg-milvus, score > precision@10|.3f}, {rankers > "
        "ranx RRF > precision@10|.3f}, {rankers > RRFRanker > precision@10|.3f} and {rankers > WeightedRanker, "
        "normalised > precision@10|.3f}",
    ],
    ("docs/benchmarks.md", "peers_searches"): [
        "repeated with noise to {searches > rows|,} rows",
        "mg-milvus takes {searches > systems > mg-milvus > added us|.0f} µs to write a row, {searches > systems > "
        "mg-milvus > query ms|.1f} ms for a query, {searches > systems > mg-milvus > memory bytes|,.0f} B of memory "
        "and {searches > systems > mg-milvus > disk bytes|.0f} B of the file",
    ],
    ("docs/benchmarks.md", "duplicates"): ["All of the {groups} groups held copies of one image only"],
}
"""Page, result -> what the page quotes, the figures in braces: where they are in the result, and their format."""


@pytest.mark.parametrize(("page", "result"), QUOTED, ids=lambda part: part)
def test_pages_quote_the_committed_figures(page: str, result: str) -> None:
    figures = figures_of(result)
    text = " ".join((BENCHMARKS.parent / page).read_text(encoding="utf-8").split())

    def figure(found: re.Match[str]) -> str:
        value = figures
        for key in found[1].split(" > "):
            value = value[key]
        return format(value, found[2] or "")

    for quoted in QUOTED[page, result]:
        assert re.sub(r"\{([^{}|]+)\|?([^{}]*)\}", figure, quoted) in text


FUSIONS = {
    "by rank (default)": "rank", "by score": "score", "by chance": "chance", "profile `object`": "object",
    "profile `balanced`": "balanced", **{f"`{name}`": name for name in ("coarse", "mid", "fine")},
    **{name: name for name in ("concatenated bits", "least rank", "z-scores", "logistic, other half")},
}  # fmt: skip


@pytest.mark.parametrize(("label", "way"), FUSIONS.items(), ids=FUSIONS.values())
def test_the_table_of_fusions_is_what_was_measured(label: str, way: str) -> None:
    cells = []
    for name in ("corel1k", "c200", "tiny-imagenet", "cifar10"):
        found = figures_of("fusion")[f"{name}, default"]
        beside = found["ways"][way]["best single"]
        said = "=" if beside["equal"] else format(beside["difference"], "+.4f")
        cells.append(f"{found['ways'][way]['map']:.4f} {'best' if way == found['best single'] else said}")
    assert f"| {' | '.join([label, *cells])} |" in tables_of("docs/benchmarks.md")


CODES = {
    "**mg-milvus**, queries as real codes": "mg-milvus", "PQ": "PCA, PQ", "RaBitQ": "PCA, RaBitQ",
    "RaBitQ, refined": "PCA, RaBitQ, refined", "PCA, 8 bits a component": "PCA, SQ8", "PCA, ITQ": "ITQ",
    "the first floats, in float16": "first floats",
    **{
        name: name
        for name in (
            "mg-milvus, codes with codes", "OPQ", "PCA, float16", "PCA, signs", "random hyperplanes",
            "spectral hashing", "anchor graph hashing", "perceptual hash",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(("label", "codes"), CODES.items(), ids=CODES.values())
def test_the_table_of_codes_of_equal_bytes_is_what_was_measured(label: str, codes: str) -> None:
    sets = figures_of("equal_bytes")
    found = [sets[name][f"{codes}, {size}"] for name in ("corel1k", "tiny-imagenet") for size in (16, 32, 56, 128)]
    cells = [f"{each['mAP']:.3f}, {each['copies recall@1']:.2f}" for each in found]
    assert f"| {' | '.join([label, *cells])} |" in tables_of("docs/benchmarks.md")


INDEXES = {
    "mg-milvus": "mg-milvus",
    "Milvus Lite, FLAT": "Milvus Lite, floats, FLAT",
    "Milvus Lite, IVF_FLAT": "Milvus Lite, floats, IVF_FLAT",
    "a table in SQLite, numpy": "SQLite and numpy, floats",
    "hnswlib": "hnswlib, floats",
    "Milvus Lite, BIN_FLAT": "Milvus Lite, one code, BIN_FLAT",
    "FAISS, flat": "FAISS, one code, flat",
    "FAISS, IVF": "FAISS, one code, IVF",
    "FAISS, HNSW": "FAISS, one code, HNSW",
    "USearch, exact": "USearch, one code, exact",
    "USearch, HNSW": "USearch, one code, HNSW",
}


def multiple(value: float) -> str:
    return format(value, ".0f" if value >= 10 else ".1f" if value >= 0.95 else ".2g")


def rows_of(page: str) -> list[list[str]]:
    """The cells of every row of a page's tables, without emphasis."""
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in tables_of(page) if "|" in line]


@pytest.mark.parametrize(("label", "system"), INDEXES.items(), ids=INDEXES.values())
def test_the_table_of_indexes_is_what_was_measured(label: str, system: str) -> None:
    found = figures_of("peers_searches")["searches"]
    over, own = found["over mg-milvus"][system], found["systems"][system]
    cells = [multiple(over[key]) for key in ("added us", "query ms", "memory bytes", "disk bytes")]
    cells += [format(own[key], shown) if key in own else "" for key, shown in (("recall@10", ".2f"), ("mAP", ".3f"))]
    assert cells in [row[2:] for row in rows_of("docs/benchmarks.md") if row[0] == label]


def test_what_others_are_faster_at_is_what_was_measured() -> None:
    searches, copies = figures_of("peers_searches")["searches"], figures_of("peers")["copies"]
    over, own = searches["over mg-milvus"], searches["systems"]
    flat, graph = over["FAISS, one code, flat"], over["hnswlib, floats"]
    recall = {name: each.get("recall", 0.0) for name, each in copies.items()}
    for quoted in (
        f"FAISS answers {1 / flat['query ms']:.0f} times as fast in 1/{1 / flat['memory bytes']:.0f} of the memory",
        f"a mAP of {own['FAISS, one code, flat']['mAP']:.3f} instead of {own['mg-milvus']['mAP']:.3f}",
        f"hnswlib on the floats {1 / graph['query ms']:.0f} times as fast, in {graph['memory bytes']:.0f} times",
        f"{recall['imagededup PHash']:.2f} to {recall['imagededup DHash']:.2f} of edited copies instead of "
        f"{recall['mg-milvus, fitting and Milvus Lite included']:.2f}",
    ):
        assert quoted in " ".join((BENCHMARKS.parent / "README.md").read_text(encoding="utf-8").split())


COPIES = {
    "imagededup, PHash": "imagededup PHash",
    "imagededup, DHash": "imagededup DHash",
    "imagededup, CNN: the same network, torch": "imagededup CNN, same network",
    "`mgm encode`: codes in a file": "mg-milvus, codes in a file",
    "`mgm ingest`, `mgm duplicates`: heads fitted, Milvus Lite filled": "mg-milvus, fitting and Milvus Lite included",
}


@pytest.mark.parametrize(("label", "tool"), COPIES.items(), ids=COPIES.values())
def test_the_table_of_near_duplicates_is_what_was_measured(label: str, tool: str) -> None:
    found = figures_of("peers")["copies"]
    own, ours = found[tool], found["mg-milvus, codes in a file"]
    cells = [multiple(own["encoding ms"] / ours["encoding ms"])]
    cells += [format(own[key], ".2f") if key in own else "" for key in ("recall", "precision")]
    assert [label, *cells, f"{own['peak_mb'] / 1024:.1f} GB"] in rows_of("docs/benchmarks.md")


SETS = {"Corel-1k": "corel1k", "tiny-imagenet": "val", "c200": "c200", "CIFAR-10": "test"}


def short(values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [format(values[name]["map"], ".3f").removeprefix("0") for name in names]


@pytest.mark.parametrize(("label", "name"), SETS.items(), ids=SETS.values())
def test_the_tables_of_hash_heads_are_what_was_measured(label: str, name: str) -> None:
    found, codes, floats = figures_of("heads")[name], ["coarse", "mid", "fused:score"], ["float", "float_smoothed"]
    for protocol, own in found["floats"].items():
        difference, (low, high) = own["compared"]["map"], own["compared"]["interval"]
        cells = [f"{label}, {protocol}", *short(own, codes + floats), f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"]
        assert f"| {' | '.join([*cells, format(own['of the better floats'], '.3f')])} |" in tables_of(
            "docs/benchmarks.md"
        )
    growth = found["growth"]
    heads = [growth[each] for each in ("heads of the old classes", "shipped heads", "fitted again")]
    cells = [*(short(own, codes) for own in heads), short(growth["features"], floats)]
    cells.append([format(share, ".2f") for share in growth["far"].values()])
    assert f"| {' | '.join([label, *map(' / '.join, cells)])} |" in tables_of("docs/benchmarks.md")


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


@pytest.mark.filterwarnings("ignore:pkg_resources is deprecated")
def test_bare_pymilvus_takes_the_rows_that_an_ingest_writes(bench: ModuleType, tmp_path: Path) -> None:
    storing, floats = importlib.import_module("short.storing"), importlib.import_module("side_by_side.floats")
    schema = Schema()
    bare = storing.Bare(tmp_path / "bare.db", schema)
    codes = {name: np.zeros(bits // 8, np.uint8) for name, bits in schema.bits.items()}
    bare.upsert(bare.layout.records([floats.row(number, codes) for number in range(3)]))
    assert bare.client.query("bare", filter="", output_fields=["count(*)"])[0]["count(*)"] == 3
    bare.client.close()


def test_a_folder_that_is_not_there_is_refused(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        bench.main(["--images", "nowhere"])
    assert refused.value.code == 2
    assert "--images nowhere is no folder; expected one that holds class/image" in capsys.readouterr().err
