"""Results of an evaluation: the measured values, and what a report page and a notebook show of them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.evaluation.metrics import NOT_A_CANDIDATE, SAME_CLASS
from mg_milvus.evaluation.scoring import FLOAT, FUSED, PAIRS, fused_keys, recipes_of
from mg_milvus.html.pages import render
from mg_milvus.html.report import (
    HUES,
    RADIUS,
    RANK,
    RECALL,
    ExampleQuery,
    ExampleResult,
    Plot,
    Section,
    bar_plot,
    curve_plot,
    histogram_plot,
    table,
    write_report,
)
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import thumbnail

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.evaluation.protocols import Split
    from mg_milvus.evaluation.scoring import RelevanceOf, Scores
    from mg_milvus.images.discover import Found
    from mg_milvus.records import Failure
    from mg_milvus.schema.models import Schema

    Rows = dict[str, dict[str, float | None]]
    Curves = Mapping[str, tuple[NDArray[Any], NDArray[np.float64]]]
    Histograms = Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]

MOST_PER_QUERY = 1000
"""With more queries their average precisions are kept in a run folder only."""
EXAMPLE_QUERIES = 12
EXAMPLE_RESULTS = 8
FLOAT_ROW = "float"
"""The row or curve of the float features, which is drawn as a reference."""
NOTEBOOK_SIDE = 128
"""Longest side of a thumbnail in pixels, in a notebook."""
NOTEBOOK_QUERIES = 2
"""Of the best and of the worst."""
NOTEBOOK_RESULTS = 7


@dataclass(frozen=True)
class Details:
    """What the metrics were computed from, for a report or for the same queries to an index.

    Attributes:
        split: labelled images, and which are queries and database; queries in the order of the average precisions in
            ``scores``.
        query_codes: granularity -> (q, bits / 8).
        database_codes: granularity -> (n, bits / 8).
        relevance_of: slice of the queries -> (q', n) uint8.
        scores: name of the ranking -> its scores; fused ones as ``fused:NAME``, of features as ``float:NAME``.
        fingerprint: of the encoder with its heads.
    """

    split: Split
    query_codes: Mapping[str, Codes]
    database_codes: Mapping[str, Codes]
    relevance_of: RelevanceOf
    scores: Mapping[str, Scores]
    fingerprint: str

    @cached_property
    def queries(self) -> tuple[Found, ...]:
        """Query images, in their order."""
        return tuple(self.split.images.images[row] for row in self.split.queries)

    @cached_property
    def database(self) -> tuple[Found, ...]:
        """Images searched, in their order."""
        return tuple(self.split.images.images[row] for row in self.split.database)

    def per_query(self) -> dict[str, dict[str, float]]:
        """Path of a query -> ranking -> average precision, up to k where mAP@k is asked for; six decimals."""
        columns = {name: own.headline.tolist() for name, own in self.scores.items()}
        return {
            query.path: {name: round(values[row], 6) for name, values in columns.items()}
            for row, query in enumerate(self.queries)
        }

    def digest(self, granularity: str) -> str:
        """Hash of the queries' and the database's codes, in their order: 32 hex digits, BLAKE2b-128."""
        found = hashlib.blake2b(digest_size=16)
        for codes in (self.query_codes[granularity], self.database_codes[granularity]):
            found.update(np.ascontiguousarray(codes).tobytes())
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: ready for JSON; ``to_json`` describes it.
        schema: granularities, weights and fusion that were evaluated.
        failures: images that could not be read or have no label; they count in no metric.
        runs: for a report, one for each seed; none for the protocol ``copies``.
    """

    metrics: Mapping[str, Any]
    schema: Schema
    failures: tuple[Failure, ...] = ()
    runs: tuple[Details, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """The metrics in their stable form; keys may be added, none removed.

        ``{"queries", "database", "granularities": {name: {"bits", "map", ...}}, "fused": {"rank": {"map", ...},
        "score": {...}, profile: {...}}, "float": {"map", ...}, "float_smoothed": {"map", ...}, "compared": {...}}``.
        ``float_smoothed`` has query expansion and database-side augmentation. Shares are in 0 .. 1; unknown values
        are None; ``map_interval`` are the ends of the 95 % interval over the queries. Ties count as ``metrics`` says.
        ``per_query`` has the average precisions of each query by its path, where there are at most 1,000. Of several
        seeds all numbers are means, ``deviation`` has their standard deviations (n - 1) in the same form, and ``runs``
        the metrics of each; what differs between runs and has no mean is None. ``run`` says what became of a run
        folder: ``{"folder", "reproduced": None (new), True or False, "differences": [...]}``.
        """
        failures = [{"path": failure.path, "reason": failure.reason} for failure in self.failures]
        return dict(self.metrics) | {"failures": failures}

    def _repr_html_(self) -> str:
        """Tables of the metrics, and with ``details`` some queries, for a notebook."""
        return _notebook_view(self)


@dataclass(frozen=True, slots=True)
class ReportData:
    """The contents of an evaluation's report, in the order of the page; an empty part is left out.

    Attributes:
        title: heading of the page.
        setup: the setting, a line each; ``"name: value"`` sets the name apart.
        metrics: row (granularity, fused, float ...) -> metric ("mAP", "P@10" ...) -> value; None or NaN: not known.
        curves: name -> recall (m,), precision (m,), both in 0 .. 1, recall ascending; ``"float"`` is drawn as the
            reference.
        histograms: granularity -> number of relevant pairs and number of other pairs at each Hamming distance, two
            integer arrays (bits + 1,).
        bars: granularity or profile -> mAP in 0 .. 1.
        float_map: mAP of the float features of the same network, drawn as a line across the bars; None or NaN: no line.
        health: granularity or "joint" -> measure of its codes ("bits", "effective bits", "collisions" ...) -> value.
        queries: the best and the worst queries; shown by falling average precision, the upper half as the best.
        by_rank: name -> ranks (m,), precision (m,); drawn beside ``curves``.
        by_radius: granularity -> Hamming distances (m,), precision (m,) of what is at most so far away.
    """

    title: str
    setup: Sequence[str] = ()
    metrics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    histograms: Histograms = field(default_factory=dict)
    bars: Mapping[str, float] = field(default_factory=dict)
    float_map: float | None = None
    health: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    queries: Sequence[ExampleQuery] = ()
    by_rank: Curves = field(default_factory=dict)
    by_radius: Curves = field(default_factory=dict)


def write_evaluation_report(data: ReportData, folder: str | os.PathLike[str]) -> Path:
    """Write the report as ``folder/index.html``; see ``html.report.write_report``."""
    setup = [(name, value) if value else ("", name) for name, _, value in (line.partition(": ") for line in data.setup)]
    return write_report(folder, data.title, setup, list(_sections(data)))


def _sections(data: ReportData) -> Iterator[Section]:
    names = [name for name in dict.fromkeys([*data.histograms, *data.curves]) if name != FLOAT_ROW]
    # Granularities first, so that each has one colour throughout the page.
    styles = {name: (f"h{place % HUES}", place >= HUES) for place, name in enumerate(names)} | {
        FLOAT_ROW: ("soft", True)
    }
    if data.metrics:
        text = "Means over the queries; the best of each column in bold."
        yield Section("Metrics", text, table(data.metrics, lambda column: not column.endswith(MEASURE_ENDS)))
    plots = []
    for over, curves in ((RECALL, data.curves), (RANK, data.by_rank), (RADIUS, data.by_radius)):
        if curves:
            drawn = {name: styles[name] for name in curves}
            key = [(name, f"{colour} dashed" if dashed else colour) for name, (colour, dashed) in drawn.items()]
            plots.append(Plot(over.title, curve_plot(curves, styles, over), key))
    if data.bars:
        reference = None if data.float_map is None or math.isnan(data.float_map) else data.float_map
        note = "" if reference is None else f"Dashed: float features of the same network, {reference:.3f}."
        fused = f"h{len(data.histograms) % HUES}"
        colours = {name: styles[name][0] if name in {*data.histograms, FLOAT_ROW} else fused for name in data.bars}
        plots.append(Plot("mAP", bar_plot(data.bars, colours, reference), note=note))
    if plots:
        yield Section("Precision and recall", "", plots=plots, layout="two")
    if data.histograms:
        text = (
            "Share of the pairs at each Hamming distance. In colour: relevant pairs; grey: all others. The less the "
            "two overlap, the better the codes separate them."
        )
        plots = [
            Plot(name, histogram_plot(name, *counts, styles[name][0]), note=_overlap(*counts))
            for name, counts in data.histograms.items()
        ]
        yield Section("Distances of relevant and other pairs", text, plots=plots)
    if data.health:
        yield Section(
            "Health of the codes", "Collisions: the share of different images with the same code.", table(data.health)
        )
    ranked = sorted(data.queries, key=lambda query: -query.average_precision)
    half = math.ceil(len(ranked) / 2)
    text = "The query with its average precision (AP), and its first results: green is relevant, red is not."
    for heading, queries in (("Best queries", ranked[:half]), ("Worst queries", ranked[half:][::-1])):
        if queries:
            yield Section(heading, text, queries=queries)


def _overlap(same: np.ndarray, different: np.ndarray) -> str:
    """A histogram in a sentence: mean distances, and the area that both distributions share."""
    if not same.sum() or not different.sum():
        return "There are no pairs of one of the two kinds."
    distances = np.arange(len(same))
    shares = same / same.sum(), different / different.sum()
    near, far = (float(distances @ share) for share in shares)
    return f"Mean {near:.1f} bits, others {far:.1f}; overlap {np.minimum(*shares).sum():.0%}."


def report_data(evaluation: Evaluation, title: str) -> ReportData:
    """The contents of an evaluation's report.

    Args:
        evaluation: of any protocol; without ``details`` there are no curves, histograms or queries.
        title: heading of the page.
    """
    metrics = evaluation.to_json()
    details = next(iter(evaluation.runs), None)
    rows = _rows(metrics)
    setup = setup_lines(metrics)
    if details is not None and len(evaluation.runs) > 1:
        setup.append(f"distances and queries below: of seed {metrics['seeds'][0]}")
    return ReportData(
        title=title,
        setup=setup,
        metrics=metrics_table(metrics) | {f"recall@1, {name}": row for name, row in copies_table(metrics).items()},
        **_curves(metrics),
        histograms={} if details is None else _histograms(details),
        bars={name: found["map"] for name, found in rows.items() if found["map"] is not None},
        float_map=metrics["float"]["map"],
        health=health_table(metrics),
        queries=() if details is None else example_queries(details, evaluation.schema),
    )


def setup_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The setting of the evaluation, a line each."""
    lines = [
        f"protocol: {metrics['about'] or metrics['protocol']}",
        f"queries: {metrics['queries']:,}",
        f"database: {metrics['database']:,}",
        f"{_seeds(metrics['seeds'])}",
        f"encoder: {', '.join(dict.fromkeys(own['fingerprint'] for own in metrics.get('runs', [metrics])))}",
        f"hash heads: {metrics['heads']}",
        f"bytes an image: {metrics['bytes_per_image']}",
    ]
    if metrics.get("seen"):
        lines.append(f"seen classes: {', '.join(metrics['seen'])}")
    if "compared" in metrics:
        lines.append(f"codes and features: {_compared(metrics['compared'])}")
    if metrics.get("alone"):
        lines.append(f"no queries: {metrics['alone']:,} images without another of their class in the database")
    if metrics["failures"]:
        lines.append(f"left out: {len(metrics['failures']):,} files that could not be read or have no label")
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    several = "; means and standard deviations over them" if len(seeds) > 1 else ""
    return f"seeds: {', '.join(map(str, seeds))}{several}"


def _compared(compared: Mapping[str, Any]) -> str:
    """The difference of fused codes and features, in words."""
    names = {"float": "the features", "float_smoothed": "the features with expansion and augmentation"}
    low, high = compared["interval"]
    verdict = "equal within" if compared["equal"] else "95 % of resampled queries"
    return (
        f"codes fused by {compared['codes']} have {compared['map']:+.3f} mAP against {names[compared['floats']]} "
        f"({verdict} {low:+.3f} to {high:+.3f})"
    )


def metrics_table(metrics: Mapping[str, Any]) -> Rows:
    """Ranking -> metric -> value, under the usual names; ``float`` is the best of the float features.

    ``float, smoothed`` are these with query expansion and database-side augmentation. After the mAP that the protocol
    reports come the ends of its interval, ``mAP≥`` and ``mAP≤``, or of several seeds its standard deviation, ``mAP±``.
    """
    if not metrics:
        return {}
    rows = _rows(metrics) | {"float": metrics["float"]}
    if "float_smoothed" in metrics:
        rows |= {"float, smoothed": metrics["float_smoothed"]}
    table = {name: _flat(found, metrics.get("map_at")) for name, found in rows.items()}
    headline = next(iter(next(iter(table.values()))))
    for name, row in metrics_table(deviation_of(metrics)).items():
        table[name] = {headline: table[name][headline], f"{headline}±": next(iter(row.values())), **table[name]}
    return table


def copies_table(metrics: Mapping[str, Any]) -> Rows:
    """Edit and strength -> ranking -> recall@1; empty for other protocols."""
    return {
        f"{edit}, {strength}": {name: own["recall@1"] for name, own in rankings.items()}
        for edit, strengths in metrics.get("copies", {}).items()
        for strength, rankings in strengths.items()
    }


def health_table(metrics: Mapping[str, Any]) -> Rows:
    """Granularity, or ``joint`` -> measure -> value."""
    rows: Rows = {}
    for name, own in metrics["granularities"].items():
        measures = {measure.replace("_", " "): value for measure, value in own["health"].items()}
        rows[name] = {"bits": own["bits"], **measures}
    rows["joint"] = {"bits": metrics["bytes_per_image"] * 8, "collisions": metrics["collisions"]["joint"]}
    return rows


def _rows(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    fused = {_fused_name(name): found for name, found in metrics["fused"].items()}
    return dict(metrics["granularities"]) | fused


def deviation_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The standard deviations over the seeds, in the form of metrics; empty for one seed."""
    return {**metrics["deviation"], "map_at": metrics.get("map_at")} if "deviation" in metrics else {}


MEASURE_ENDS = ("≥", "≤", "±")
"""Ends of the columns that belong to the mAP before them."""


def _flat(found: Mapping[str, Any], map_at: int | None) -> dict[str, float | None]:
    """The metrics of one ranking as a row, under the usual names."""
    line = {}
    for name, key in ((f"mAP@{map_at}", "map_at_k"), ("mAP", "map")):
        if key in found:
            line[name] = found[key]
            ends = found.get(f"{key}_interval", ())
            line |= {f"{name}{end}": value for end, value in zip(MEASURE_ENDS, ends, strict=False)}
    names = {"map_group": "mAP groups", "map_at_r": "mAP@R", "precision_radius_2": "P@radius 2"}
    line |= {names[key]: found[key] for key in names if key in found}
    for key, letter in (("precision", "P"), ("recall", "R"), ("ndcg", "NDCG")):
        line |= {f"{letter}@{k}": value for k, value in found.get(key, {}).items()}
    return line


def _fused_name(name: str) -> str:
    return f"{name} fusion" if name in {"rank", "score"} else name


def _curves(metrics: Mapping[str, Any]) -> dict[str, Curves]:
    """The curves of the granularities, of rank fusion and of the best float features; none where there are none."""
    if "curves" not in metrics:
        return {}
    found, best = metrics["curves"], metrics["float"]["granularity"]
    names = {name: name for name in metrics["granularities"]}
    names |= {FUSED + "rank": _fused_name("rank")} | ({FLOAT + best: FLOAT_ROW} if best else {})
    lines = {shown: found["by_rank"][name] for name, shown in names.items()}
    recall, ranks = {}, {}
    for name, own in lines.items():
        recall[name] = np.array(own["recall"]), np.array(own["precision"])
        ranks[name] = np.array(found["ranks"]), np.array(own["precision"])
    radii = {name: np.array(own["precision"]) for name, own in found["by_radius"].items()}
    within = {name: (np.arange(len(precision)), precision) for name, precision in radii.items()}
    return {"curves": recall, "by_rank": ranks, "by_radius": within}


def _histograms(details: Details) -> Histograms:
    """Granularity -> pairs of the same class and of different ones at each distance, (bits + 1,) each."""
    found = {
        name: (np.zeros(codes.shape[1] * 8 + 1, np.int64), np.zeros(codes.shape[1] * 8 + 1, np.int64))
        for name, codes in details.database_codes.items()
    }
    step = max(1, PAIRS // len(details.database))
    for start in range(0, len(details.queries), step):
        part = slice(start, min(start + step, len(details.queries)))
        grades = details.relevance_of(part)
        for name, (same, different) in found.items():
            distances = hamming(details.query_codes[name][part], details.database_codes[name])
            same += np.bincount(distances[grades == SAME_CLASS], minlength=len(same))
            different += np.bincount(distances[grades < SAME_CLASS], minlength=len(same))
    return found


def example_queries(details: Details, schema: Schema) -> list[ExampleQuery]:
    """The queries with the highest and the lowest average precision of the rank fusion, and their nearest images."""
    precisions = details.scores[f"{FUSED}rank"].ranking.average_precisions
    order = np.argsort(-precisions, kind="stable")
    half = EXAMPLE_QUERIES // 2
    chosen = order if len(order) <= EXAMPLE_QUERIES else np.concatenate([order[:half], order[-half:]])
    return [_query(details, schema, int(row), float(precisions[row])) for row in chosen]


def _query(details: Details, schema: Schema, row: int, precision: float) -> ExampleQuery:
    part = slice(row, row + 1)
    grades = details.relevance_of(part)[0]
    candidates = grades != NOT_A_CANDIDATE
    distances = {
        name: hamming(codes[part], details.database_codes[name])[0] for name, codes in details.query_codes.items()
    }
    recipe = recipes_of(schema)["rank"]
    keys = fused_keys(distances, schema.bits, [recipe], candidates)[0]
    rows = np.flatnonzero(candidates)
    nearest = rows[np.argsort(keys[rows], kind="stable")[:EXAMPLE_RESULTS]]
    hits = tuple(
        ExampleResult(
            details.database[hit].path,
            ", ".join(f"{name} {values[hit]}" for name, values in distances.items()),
            bool(grades[hit] == SAME_CLASS),
        )
        for hit in nearest
    )
    return ExampleQuery(details.queries[row].path, precision, hits)


def _notebook_view(evaluation: Evaluation) -> str:
    metrics, details = evaluation.to_json(), next(iter(evaluation.runs), None)
    examples = [] if details is None else example_queries(details, evaluation.schema)
    if len(examples) > 2 * NOTEBOOK_QUERIES:
        examples = examples[:NOTEBOOK_QUERIES] + examples[-NOTEBOOK_QUERIES:]
    groups = []
    for query in examples:
        cards = [_card(query.path, "query")]
        cards += [_card(hit.path, "✓" if hit.relevant else "✗") for hit in query.results[:NOTEBOOK_RESULTS]]
        groups.append((f"Average precision {query.average_precision:.3f}", cards))
    tables = [
        (["", *own.columns], [(name, [text for text, _ in cells]) for name, cells in own.rows])
        for own in map(table, (metrics_table(metrics), copies_table(metrics), health_table(metrics)))
        if own.rows
    ]
    return render("evaluation", setup=setup_lines(metrics), tables=tables, groups=groups)


def _card(path: str, badge: str) -> dict[str, Any]:
    file = text_path(path)
    return {"path": str(file), "name": file.name, "image": thumbnail(file, NOTEBOOK_SIDE), "badge": badge}
