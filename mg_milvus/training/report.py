"""Curves of a training: scalars for TensorBoard (an extra), and a report page."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.errors import MissingPackageError
from mg_milvus.html.report import HUES, Plot, Section, Table, check_report, epoch_plot, number, write_report

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mg_milvus.training.train import TrainReport


@contextmanager
def tensorboard_writer(folder: str | os.PathLike[str] | None) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A function that writes the record of an epoch as scalars into ``folder``; None: it writes nothing.

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


_MAP = "map_"
"""Prefix of the mAP on held-out images, by granularity, in the record of an epoch."""
_MEAN = "held_out"
_NOT_LOSSES = frozenset({"epoch", "seconds", _MEAN})


def write_training_report(
    report: TrainReport, folder: str | os.PathLike[str], *, title: str, setup: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write the curves of a training as ``folder/index.html``; see ``html.report.write_report``.

    Args:
        report: of ``train``; after a resumption its history covers the whole training.
        folder: where to write; an ``index.html`` there is replaced.
        title: heading of the page.
        setup: name and value of each setting, shown before the outcome.
    """
    check_report(folder)
    history, best = report.history, report.best_epoch
    names = list(dict.fromkeys(name for record in history for name in record))
    maps = [name for name in names if name.startswith(_MAP)]
    lines = {name.removeprefix(_MAP): _values(history, name) for name in maps}
    colours = {name: f"h{place % HUES}" for place, name in enumerate(lines)}
    if len(lines) > 1:
        lines["mean"], colours["mean"] = _values(history, _MEAN), "soft"
    losses = [name for name in names if name not in _NOT_LOSSES and name not in maps]
    sections = []
    if lines:
        plot = epoch_plot("mAP of held-out images", lines, colours, best, share=True)
        sections.append(Section(
            "Held-out images",
            "Mean average precision of images that were not trained on, each granularity on the labels of its own "
            "level; higher is better. Dashed: the epoch whose weights were kept.",
            plots=[Plot("mAP", plot, list(colours.items()))], layout="alone",
        ))  # fmt: skip
    loss_plots = [
        Plot(name, epoch_plot(f"loss {name}", {name: _values(history, name)}, {name: colours.get(name, "soft")}, best))
        for name in losses
    ]
    text = "Means over the batches of each epoch; lower is better, and each has a scale of its own."
    sections.append(Section("Losses", text, plots=loss_plots))
    columns = [*losses, *maps, *([_MEAN] if len(maps) > 1 else []), "seconds"]
    text = "In bold: the epoch whose weights were kept."
    sections.append(Section("Epochs", text, _epoch_table(history, columns, best)))
    return write_report(folder, title, [*setup, *_outcome(report)], sections)


def _values(history: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    """(epochs,) values; NaN, which is not drawn, where an epoch has none."""
    return np.array([record.get(name, np.nan) for record in history], np.float64)


def _outcome(report: TrainReport) -> list[tuple[str, str]]:
    labels = " and ".join(f"{count:,} {level}" for level, count in report.labels.items())
    return [
        ("encoder", report.fingerprint),
        ("images", f"{report.images:,}"),
        ("held out", f"{report.held_out:,}"),
        ("labels", labels or "clusters in their place"),
        ("epochs", f"{report.epochs:,}, kept: {report.best_epoch}"),
    ]


def _epoch_table(history: Sequence[Mapping[str, float]], columns: Sequence[str], best: int) -> Table:
    """A row for each epoch, the best in bold."""
    used = [name for name in columns if any(name in record for record in history)]
    headings = [
        f"mAP {name.removeprefix(_MAP)}" if name.startswith(_MAP) else "mean mAP" if name == _MEAN else name
        for name in used
    ]
    rows = [
        (str(epoch), [(number(record.get(name)), epoch == best) for name in used])
        for epoch, record in enumerate(history, 1)
    ]
    return Table(headings, rows)
