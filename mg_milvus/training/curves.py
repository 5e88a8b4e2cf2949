"""Curves of a training for TensorBoard, an extra."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from mg_milvus.errors import MissingPackageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping


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
