"""An evaluation in a notebook: its tables, and the best and the worst queries with small pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mg_milvus.evaluation.report import number
from mg_milvus.evaluation.shown import copies_table, figure_table, health_table, queries_shown, setup
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import thumbnail
from mg_milvus.notebook import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.evaluation.run import Evaluation

SIDE = 128
"""Longest side of a thumbnail in pixels."""
QUERIES_SHOWN = 2
"""Of the best and of the worst."""
HITS_SHOWN = 7


def evaluation_html(evaluation: Evaluation) -> str:
    """What there is to show of an evaluation."""
    figures, details = evaluation.to_json(), evaluation.details
    found = [] if details is None else queries_shown(details, evaluation.schema)
    ranked = sorted(found, key=lambda query: -query.average_precision)
    shown = []
    for query in ranked if len(ranked) <= 2 * QUERIES_SHOWN else ranked[:QUERIES_SHOWN] + ranked[-QUERIES_SHOWN:]:
        cards = [_card(query.path, "query")]
        cards += [_card(hit.path, "✓" if hit.relevant else "✗") for hit in query.hits[:HITS_SHOWN]]
        shown.append((f"Average precision {query.average_precision:.3f}", cards))
    tables = [_table(rows) for rows in (figure_table(figures), copies_table(figures), health_table(figures)) if rows]
    return render("evaluation", setup=setup(figures), tables=tables, shown=shown)


def _table(rows: Mapping[str, Mapping[str, float | None]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return ["", *columns], [(name, [number(row.get(column)) for column in columns]) for name, row in rows.items()]


def _card(path: str, badge: str) -> dict[str, Any]:
    file = text_path(path)
    return {"path": str(file), "name": file.name, "picture": thumbnail(file, SIDE), "badge": badge}
