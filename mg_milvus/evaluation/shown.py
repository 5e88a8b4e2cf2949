"""An evaluation as a report shows it: tables, curves, histograms, the best and the worst queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.evaluation.rankings import fused_keys, recipes_of
from mg_milvus.evaluation.report import QueryShown, ReportData, ResultShown
from mg_milvus.evaluation.scoring import FLOAT, FUSED, PAIRS
from mg_milvus.metrics import NOT_A_CANDIDATE, SAME_CLASS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.evaluation.details import Details
    from mg_milvus.evaluation.run import Evaluation
    from mg_milvus.schema import Schema

QUERIES_SHOWN = 12
HITS_SHOWN = 8


def report_data(evaluation: Evaluation, title: str) -> ReportData:
    """What ``report.write_report`` shows of an evaluation.

    Args:
        evaluation: of any protocol; without ``details`` there are no curves, histograms or queries.
        title: heading of the page.
    """
    figures = evaluation.to_json()
    details = evaluation.details
    rows = _rows(figures)
    return ReportData(
        title=title,
        setup=setup(figures),
        table=figure_table(figures) | _copies_rows(figures),
        curves={} if details is None else _curves(details, figures["float"]["granularity"]),
        histograms={} if details is None else _histograms(details),
        bars={name: found["map"] for name, found in rows.items() if found["map"] is not None},
        float_map=figures["float"]["map"],
        health=health_table(figures),
        queries=() if details is None else queries_shown(details, evaluation.schema),
    )


def setup(figures: Mapping[str, Any]) -> list[str]:
    """What was done, a line each."""
    lines = [
        f"protocol: {figures['about']}",
        f"queries: {figures['queries']:,}",
        f"database: {figures['database']:,}",
        f"encoder: {figures['fingerprint']}",
        f"hash heads: {figures['heads']}",
        f"bytes a picture: {figures['bytes_per_picture']}",
    ]
    if figures.get("alone"):
        lines.append(f"not asked: {figures['alone']:,} pictures without another of their class in the database")
    if figures["failures"]:
        lines.append(f"left out: {len(figures['failures']):,} files that could not be read or have no label")
    return lines


def figure_table(figures: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Ranking -> figure -> value, with the names that people use; the best float reading is ``float``."""
    return {name: _flat(found) for name, found in (_rows(figures) | {"float": figures["float"]}).items()}


def copies_table(figures: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Edit and strength -> ranking -> recall@1; empty for other protocols."""
    return {
        f"{edit}, {strength}": {name: own["recall@1"] for name, own in rankings.items()}
        for edit, strengths in figures.get("copies", {}).items()
        for strength, rankings in strengths.items()
    }


def health_table(figures: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Granularity, or ``joint`` -> measure -> value."""
    found: dict[str, dict[str, float | None]] = {}
    for name, own in figures["granularities"].items():
        measures = {measure.replace("_", " "): value for measure, value in own["health"].items()}
        found[name] = {"bits": own["bits"], **measures}
    found["joint"] = {"bits": figures["bytes_per_picture"] * 8, "collisions": figures["collisions"]["joint"]}
    return found


def _rows(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    fused = {_fused_name(name): found for name, found in figures["fused"].items()}
    return dict(figures["granularities"]) | fused


def _flat(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of one ranking in one line, with the names that people use."""
    line = {"mAP": found["map"]}
    names = {"map_group": "mAP groups", "map_at_r": "mAP@R", "precision_radius_2": "P@radius 2"}
    line |= {names[key]: found[key] for key in names if key in found}
    for key, letter in (("precision", "P"), ("recall", "R"), ("ndcg", "NDCG")):
        line |= {f"{letter}@{k}": value for k, value in found.get(key, {}).items()}
    return line


def _fused_name(name: str) -> str:
    return f"{name} fusion" if name in {"rank", "score"} else name


def _copies_rows(figures: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The same with rankings as rows would be wide; a report has a row for each edit."""
    return {f"recall@1, {name}": row for name, row in copies_table(figures).items()}


def _curves(details: Details, best_float: str) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Name -> mean recall and mean precision, rank by rank: the granularities, rank fusion, the best float reading."""
    names = {name: name for name in details.database_codes}
    names |= {FUSED + "rank": _fused_name("rank"), FLOAT + best_float: "float"}
    found = {}
    for name, shown in names.items():
        ranking = details.scores[name].ranking
        ranks = [k for k in sorted(ranking.recall) if k <= len(details.database)]
        found[shown] = np.array([ranking.recall[k] for k in ranks]), np.array([ranking.precision[k] for k in ranks])
    return found


def _histograms(details: Details) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
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


def queries_shown(details: Details, schema: Schema) -> list[QueryShown]:
    """The queries with the highest and the lowest average precision of the rank fusion, and their nearest pictures."""
    precisions = details.scores[f"{FUSED}rank"].ranking.average_precisions
    order = np.argsort(-precisions, kind="stable")
    half = QUERIES_SHOWN // 2
    chosen = order if len(order) <= QUERIES_SHOWN else np.concatenate([order[:half], order[-half:]])
    return [_query(details, schema, int(row), float(precisions[row])) for row in chosen]


def _query(details: Details, schema: Schema, row: int, precision: float) -> QueryShown:
    part = slice(row, row + 1)
    grades = details.relevance_of(part)[0]
    candidates = grades != NOT_A_CANDIDATE
    distances = {
        name: hamming(codes[part], details.database_codes[name])[0] for name, codes in details.query_codes.items()
    }
    recipe = recipes_of(schema)["rank"]
    keys = fused_keys(distances, schema.bits, [recipe], candidates)[0]
    rows = np.flatnonzero(candidates)
    nearest = rows[np.argsort(keys[rows], kind="stable")[:HITS_SHOWN]]
    hits = tuple(
        ResultShown(
            details.database[hit].path,
            ", ".join(f"{name} {values[hit]}" for name, values in distances.items()),
            bool(grades[hit] == SAME_CLASS),
        )
        for hit in nearest
    )
    return QueryShown(details.queries[row].path, precision, hits)
