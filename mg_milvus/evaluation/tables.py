"""Metrics over several seeds, and tables of metrics for papers in LaTeX and Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from mg_milvus.evaluation.report import MEASURE_ENDS, copies_table, deviation_of, metrics_table, setup_lines
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mg_milvus.evaluation.report import Rows

TableFormat = Literal["latex", "markdown"]
FORMATS: tuple[str, ...] = get_args(TableFormat)

_NO_MEAN = frozenset({"map_interval", "map_at_k_interval", "compared", "per_query"})
"""Keys of metrics whose values are of one run: an interval over its queries is none of the mean over seeds."""


def over_seeds(runs: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """The metrics of one seed as they are; of several their means, with ``deviation`` and ``runs``.

    Args:
        runs: the metrics of each seed, in one form.
        seeds: one for each.

    Returns:
        The form that ``Evaluation.to_json`` describes, with ``seeds``.
    """
    if len(runs) == 1:
        return {**runs[0], "seeds": list(seeds)}
    return {
        **_reduced(list(runs), lambda values: float(np.mean(values))),
        "seeds": list(seeds),
        "deviation": _numbers(_reduced(list(runs), lambda values: float(np.std(values, ddof=1)), same=0.0)),
        "runs": [{"seed": seed, **run} for seed, run in zip(seeds, runs, strict=True)],
    }


def _reduced(values: list[Any], reduce: Callable[[list[float]], float], *, same: float | None = None) -> Any:
    """Trees of one form, every number reduced to one; ``same``: what becomes of equal numbers, None: they stay."""
    first = values[0]
    if isinstance(first, dict):
        keys = [key for key in first if key not in _NO_MEAN and all(key in value for value in values)]
        return {key: _reduced([value[key] for value in values], reduce, same=same) for key in keys}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if all(value == first for value in values):
            return first if same is None else same
        return round(reduce(values), 6)
    if all(isinstance(value, list) and len(value) == len(first) for value in values) and _is_numbers(first):
        return [_reduced(list(own), reduce, same=same) for own in zip(*values, strict=True)]
    return first if all(value == first for value in values) else None


def _is_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float | None) for value in values)


def _numbers(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without what is neither a number nor holds any."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        kept = _numbers(value) if isinstance(value, dict) else value
        if kept not in ({}, None) and not isinstance(kept, str):
            found[key] = kept
    return found


class _Cell(NamedTuple):
    """A value with what stands behind it: ``± 0.004`` or ``[0.712, 0.733]``."""

    value: str
    spread: str
    best: bool


def paper_tables(metrics: Mapping[str, Any], form: TableFormat) -> str:
    r"""Everything that was measured as tables, the setting before them as comments or a list.

    Args:
        metrics: as ``Evaluation.to_json`` has them.
        form: ``latex`` needs the package booktabs. The best value of each column is bold. mAP has the 95 % interval
            over the queries, of several seeds everything has its standard deviation.
    """
    deviation = deviation_of(metrics)
    tables = [_cells(metrics_table(metrics), metrics_table(deviation))]
    if "copies" in metrics:
        tables.append(_cells(copies_table(metrics), copies_table(deviation)))
    lines = [escape_controls(line) for line in setup_lines(metrics)]
    if form == "latex":
        return "\n".join([*(f"% {line}" for line in lines), *("\n".join(_latex(own)) for own in tables)])
    head = [f"- {_plain(line)}" for line in lines]
    return "\n\n".join(["\n".join(head), *("\n".join(_markdown(own)) for own in tables)])


def _cells(rows: Rows, deviations: Rows) -> dict[str, dict[str, _Cell]]:
    """Ranking -> column -> cell, the columns of every ranking in one order."""
    columns = dict.fromkeys(column for row in rows.values() for column in row if not column.endswith(MEASURE_ENDS))
    texts = {name: {column: _text(row.get(column)) for column in columns} for name, row in rows.items()}
    best = {column: max(row[column] for row in texts.values()) for column in columns}

    def spread(name: str, column: str) -> str:
        deviation = deviations.get(name, {}).get(column)
        if deviation is not None:
            return f"± {deviation:.3f}"
        ends = [rows[name].get(column + end) for end in MEASURE_ENDS[:2]]
        return "" if None in ends else f"[{_text(ends[0])}, {_text(ends[1])}]"

    def cell(name: str, column: str, text: str) -> _Cell:
        return (
            _Cell(text, spread(name, column), len(rows) > 1 and text == best[column]) if text else _Cell("", "", False)
        )

    return {name: {column: cell(name, column, text) for column, text in own.items()} for name, own in texts.items()}


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _latex(rows: Mapping[str, Mapping[str, _Cell]]) -> list[str]:
    columns = list(next(iter(rows.values())))

    def cell(own: _Cell) -> str:
        value = rf"\textbf{{{own.value}}}" if own.best else own.value or "--"
        spread = own.spread.replace("±", r"$\pm$")
        return f"{value} {spread}".strip()

    return [
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["", *map(_escaped, columns)]) + r" \\",
        r"\midrule",
        *(" & ".join([_escaped(name), *map(cell, row.values())]) + r" \\" for name, row in rows.items()),
        r"\bottomrule",
        r"\end{tabular}",
    ]


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    char: "\\" + char for char in "&%$#_{}"
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in escape_controls(text))


def _markdown(rows: Mapping[str, Mapping[str, _Cell]]) -> list[str]:
    columns = list(next(iter(rows.values())))

    def cell(own: _Cell) -> str:
        value = f"**{own.value}**" if own.best else own.value or "–"
        return f"{value} {own.spread}".strip()

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [
        line(["", *map(_plain, columns)]),
        line(["---", *("---:" for _ in columns)]),
        *(line([_plain(name), *map(cell, row.values())]) for name, row in rows.items()),
    ]


def _plain(text: str) -> str:
    """Text without what Markdown takes for markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", escape_controls(text))
