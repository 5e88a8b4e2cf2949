"""Pictures for training: decoded once, kept small in one file on disk, handed out as augmented batches."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from mg_milvus.errors import PictureError, TrainingError
from mg_milvus.hits import Failure
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import text_path
from mg_milvus.training.augmentation import GROUP, Augmenter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mg_milvus.images.discover import Found
    from mg_milvus.training.configuration import TrainingConfiguration

ROOM = 1.25
"""Kept pictures are this much larger than the largest input, so that crops stay sharp."""
_CHUNK = 512


class PictureCache:
    """Decoded pictures of about ``side`` * ``side`` pixels each, aspect kept, in a file without a name.

    They are mapped, not loaded: what does not fit into memory is read again from the disk. A context manager.
    """

    def __init__(self, file: tempfile._TemporaryFileWrapper[bytes]) -> None:
        self._file = file
        self._starts: list[int] = []
        self._shapes: list[tuple[int, int]] = []
        self._flat: NDArray[np.uint8] = np.empty(0, np.uint8)

    @classmethod
    def fill(
        cls,
        pictures: Sequence[Found],
        side: int,
        *,
        workers: int | None,
        max_pixels: int,
        failed: Callable[[Failure], None],
        report: Callable[[int], None],
    ) -> tuple[PictureCache, list[int]]:
        """Decode pictures.

        Returns:
            The cache and the rows of ``pictures`` that are in it, in order; the others are reported to ``failed``.

        Raises:
            TrainingError: the disk is full.
        """
        cache = cls(tempfile.TemporaryFile(prefix="mgm-"))  # type: ignore[arg-type]  # noqa: SIM115  (the cache owns it)
        kept: list[int] = []

        def read(found: Found) -> NDArray[np.uint8] | str:
            try:
                with opening(text_path(found.path), least=side, max_pixels=max_pixels) as decoded:
                    picture = decoded.picture
                    scale = min(1.0, side / (picture.width * picture.height) ** 0.5)
                    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
                    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))
            except PictureError as error:
                return str(error)

        try:
            with ThreadPoolExecutor(workers or os.cpu_count(), "mgm-decode") as pool:
                for start in range(0, len(pictures), _CHUNK):
                    for row, found in enumerate(pool.map(read, pictures[start : start + _CHUNK]), start):
                        if isinstance(found, str):
                            failed(Failure(pictures[row].path, found))
                        else:
                            cache._add(found)
                            kept.append(row)
                    report(min(start + _CHUNK, len(pictures)))
            cache._close_file()
        except OSError as error:
            cache.close()
            raise TrainingError(
                f"the decoded pictures do not fit into {tempfile.gettempdir()}: {error.strerror}; they take "
                f"{len(pictures) * side * side * 3 / 1e9:.1f} GB: set TMPDIR to a folder with room, or train smaller"
            ) from error
        return cache, kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk space back."""
        self._flat = np.empty(0, np.uint8)
        self._file.close()

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """Picture (h, w, 3) uint8."""
        height, width = self._shapes[row]
        start = self._starts[row]
        return self._flat[start : start + height * width * 3].reshape(height, width, 3)

    def _add(self, picture: NDArray[np.uint8]) -> None:
        self._starts.append(self._starts[-1] + 3 * int(np.prod(self._shapes[-1])) if self._shapes else 0)
        self._shapes.append((picture.shape[0], picture.shape[1]))
        self._file.write(picture.tobytes())

    def _close_file(self) -> None:
        self._file.flush()
        if self._shapes:
            # Copy on write: torch warns about arrays that cannot be written, though nobody writes.
            self._flat = np.memmap(self._file, np.uint8, "c")


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures as the network sees them.

    Attributes:
        rows: (n,) int64, indices of the pictures in the cache.
        views: one or two tensors (n, 3, side, side) float32, the same pictures varied differently.
    """

    rows: torch.Tensor
    views: tuple[torch.Tensor, ...]


class Batches(Dataset[Batch]):
    """The batches of one epoch. Each depends on the seed, the epoch and its place alone, whoever makes it."""

    def __init__(
        self, cache: PictureCache, rows: NDArray[np.int64], configuration: TrainingConfiguration, epoch: int, views: int
    ) -> None:
        self._cache = cache
        self._seed = (configuration.seed * 100_003 + epoch) * 1_000_003
        self._sides = configuration.sides(epoch)
        self._views = views
        self._augmenter = Augmenter(configuration.augmentation)
        order = np.random.default_rng(self._seed).permutation(rows)
        size = min(configuration.optimisation.batch, len(order))
        self.size = size
        self._batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: int) -> Batch:
        rows = self._batches[place]
        torch.manual_seed(self._seed + place + 1)
        side = self._sides[int(torch.randint(len(self._sides), ()))]
        pictures = [self._cache[row] for row in rows]
        views = []
        for _ in range(self._views):
            # Another order for every view: two views of a picture must not share the changes of one group.
            order = torch.randperm(len(rows)) if self._views > 1 and len(rows) > GROUP else torch.arange(len(rows))
            made = self._augmenter([pictures[i] for i in order.tolist()], side)
            views.append(made[order.argsort()].contiguous(memory_format=torch.channels_last))
        return Batch(torch.from_numpy(rows), tuple(views))
