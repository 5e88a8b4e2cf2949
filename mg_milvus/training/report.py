"""Curves of a training for TensorBoard, an extra."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus import __version__
from mg_milvus.errors import MissingPackageError
from mg_milvus.evaluation.report import HUES, Cell, Table, epoch_plot, number, write_page
from mg_milvus.html.pages import template

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mg_milvus.training.train import TrainReport


@contextmanager
def curves(folder: str | os.PathLike[str] | None) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A function that takes the record of an epoch, and writes it as scalars into ``folder``; None: writes nothing.

    Raises:
        MissingPackageError: TensorBoard is not installed.
    """
    if folder is None:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError(
            "--tensorboard needs TensorBoard, which is not installed: pip install 'mg-milvus[tensorboard]'"
        ) from error
    with SummaryWriter(str(folder)) as writer:

        def write(record: Mapping[str, float]) -> None:
            for name, value in record.items():
                if name != "epoch":
                    group = "held-out" if name.startswith("map_") or name == "held_out" else "losses"
                    writer.add_scalar(name if name == "seconds" else f"{group}/{name}", value, int(record["epoch"]))
            writer.flush()

        yield write


_FOUND = "map_"
"""What the names of the figures on held-out images begin with."""
_MEAN = "held_out"
_NO_LOSS = frozenset({"epoch", "seconds", _MEAN})


def write_training_page(
    report: TrainReport, folder: str | os.PathLike[str], *, title: str, setup: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write the curves of a training as ``folder/index.html``; the folder is made if need be.

    Args:
        report: what ``train`` gave; after a resumption its history is that of the whole training.
        folder: where to write; an ``index.html`` there is replaced.
        title: heading of the page.
        setup: name and value of what was chosen, shown before what came of it.

    Returns:
        Path of the page.

    Raises:
        MissingPackageError: matplotlib is not installed.
        QueryError: the page cannot be written.
    """
    history = report.history
    names = list(dict.fromkeys(name for record in history for name in record))
    codes = [name for name in names if name.startswith(_FOUND)]
    lines = {name.removeprefix(_FOUND): _line(history, name) for name in codes}
    colours = {name: f"h{place % HUES}" for place, name in enumerate(lines)}
    if len(lines) > 1:
        lines["mean"], colours["mean"] = _line(history, _MEAN), "soft"
    losses = [name for name in names if name not in _NO_LOSS and name not in codes]
    page = template("training.html.jinja").render(
        title=title,
        setup=[*setup, *_outcome(report)],
        key=list(colours.items()),
        found=epoch_plot(lines, colours, "mAP of held-out images", report.best_epoch, share=True) if lines else "",
        losses=[
            (name, epoch_plot(
                {name: _line(history, name)}, {name: colours.get(name, "soft")}, f"loss {name}", report.best_epoch,
                share=False,
            ))
            for name in losses
        ],
        epochs=_epochs(history, [*losses, *codes, *([_MEAN] if len(codes) > 1 else []), "seconds"], report.best_epoch),
        version=__version__,
    )  # fmt: skip
    return write_page(page, folder)


def _line(history: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    """(epochs,) values; NaN, which is not drawn, where an epoch has none."""
    return np.array([record.get(name, np.nan) for record in history], np.float64)


def _outcome(report: TrainReport) -> list[tuple[str, str]]:
    learned = " and ".join(f"{count:,} {level}" for level, count in report.labels.items())
    return [
        ("encoder", report.fingerprint),
        ("images", f"{report.images:,}"),
        ("held out", f"{report.held_out:,}"),
        ("labels", learned or "clusters in their place"),
        ("epochs", f"{report.epochs:,}, kept: {report.best_epoch}"),
    ]


def _epochs(history: Sequence[Mapping[str, float]], columns: Sequence[str], best: int) -> Table:
    """A row an epoch, the best in bold."""
    shown = [name for name in columns if any(name in record for record in history)]
    heads = [
        f"mAP {name.removeprefix(_FOUND)}" if name.startswith(_FOUND) else "mean mAP" if name == _MEAN else name
        for name in shown
    ]
    rows = [
        (str(place), [Cell(number(record.get(name)), place == best) for name in shown])
        for place, record in enumerate(history, 1)
    ]
    return Table(heads, rows)
