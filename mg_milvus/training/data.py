"""Variations of images for training, by torchvision's v2 transforms.

Crops and mirroring are drawn for each image; the rest for groups of ``GROUP`` images at once, which costs a
fraction of the time. A batch is shuffled, so that its groups are random.
"""

from __future__ import annotations

import io
import os
import random
import string
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as V

from mg_milvus.encoder.backbones import IMAGENET_MEAN, find_backbone
from mg_milvus.errors import ImageError, TrainingError
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import text_path
from mg_milvus.records import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.images.discover import Found
    from mg_milvus.training.config import Augmentation, TrainingConfiguration


GROUP = 8
_RATIO = (3 / 4, 4 / 3)
_CAPTIONS = 48


class Pencil(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """A pencil drawing: grey divided by its own blur, which leaves the edges. uint8 in, uint8 out."""

    def transform(self, inpt: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
        grey = V.rgb_to_grayscale(inpt, 1).float()
        width = 2 * int(inpt.shape[-1] // 24) + 3
        blurred = V.gaussian_blur(grey, [width, width])
        drawn = (grey / blurred.clamp(min=1)).clamp(0, 1)
        found: torch.Tensor = (drawn.pow(2.5) * 255).to(torch.uint8).expand_as(inpt)
        return found


class RandomFilter(v2.Transform):  # type: ignore[misc]
    """Replaces textures by those of a random 3x3 filter over all channels (Xu et al., RandConv, ICLR 2021)."""

    def transform(self, inpt: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
        kernel = torch.randn(3, 3, 3, 3) / 27**0.5
        found = F.conv2d(F.pad(inpt.float(), (1, 1, 1, 1), mode="replicate"), kernel)
        low, high = found.amin((1, 2, 3), keepdim=True), found.amax((1, 2, 3), keepdim=True)
        share = torch.rand(1)
        mixed = (found - low) / (high - low).clamp(min=1) * 255 * share + inpt.float() * (1 - share)
        return mixed.to(torch.uint8)


class Jpeg(v2.Transform):  # type: ignore[misc]
    """Compresses as JPEG, by Pillow: torchvision's own codec is to be removed. uint8 in, uint8 out."""

    def transform(self, inpt: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
        quality = int(torch.randint(8, 61, ()))
        found = torch.empty_like(inpt)
        for place, image in enumerate(inpt):
            buffer = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=quality)
            found[place] = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
        return found


class Caption(v2.Transform):  # type: ignore[misc]
    """Writes random text, with or without a box behind it, somewhere onto the images."""

    def __init__(self) -> None:
        super().__init__()
        draw = random.Random(5)  # noqa: S311  (reproducible, not secret)
        self._captions = [_caption(draw) for _ in range(_CAPTIONS)]

    def transform(self, inpt: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
        caption = self._captions[int(torch.randint(_CAPTIONS, ()))]
        height, width = inpt.shape[-2:]
        h = max(4, int(height * (0.08 + 0.17 * float(torch.rand(())))))
        w = max(8, min(width, int(h * caption.shape[-1] / caption.shape[-2])))
        ink = V.resize(caption, [h, w], antialias=True).float() / 255
        y, x = int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ()))
        colours = (torch.rand(2, 3, 1, 1) * 1.6 - 0.3).clamp(0, 1) * 255
        box = float(torch.rand(())) < 0.5
        found = inpt.clone()
        place = found[..., y : y + h, x : x + w]
        behind = colours[1] if box else place.float()
        place.copy_((ink * colours[0] + (1 - ink) * behind).to(torch.uint8))
        return found


def _caption(draw: random.Random) -> torch.Tensor:
    """White text on black, (1, h, w) uint8."""
    text = "".join(draw.choices(string.ascii_letters + string.digits, k=draw.randint(4, 14)))
    font = ImageFont.load_default(24)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(image).text((4 - left, 4 - top), text, fill=255, font=font)
    return torch.from_numpy(np.asarray(image).copy())[None]


class Augmenter:
    """Images of any size -> one normalised batch of a square size, varied. Draws from torch's global generator."""

    def __init__(self, settings: Augmentation, backbone: str) -> None:
        self._settings = s = settings
        self._backbone = backbone

        def sometimes(chance: float, *transforms: v2.Transform) -> list[v2.Transform]:
            return [v2.RandomApply([v2.RandomChoice(list(transforms))], chance)] if chance else []

        bilinear = InterpolationMode.BILINEAR
        self._groupwise = v2.Compose([
            v2.Identity(),
            *sometimes(s.rotation, v2.RandomRotation(20, bilinear), v2.RandomRotation(8, bilinear)),
            *sometimes(
                s.style,
                v2.RandomPosterize(3, 1.0), v2.RandomSolarize(128, 1.0), Pencil(), RandomFilter(), RandomFilter(),
            ),
            *sometimes(s.colour, v2.ColorJitter(0.4, 0.4, 0.4, 0.08)),
            *sometimes(s.grey, v2.Grayscale(3)),
            *sometimes(s.text, Caption()),
            *sometimes(s.blur, v2.GaussianBlur(5, (0.3, 1.5))),
            *sometimes(s.jpeg, Jpeg()),
        ])  # fmt: skip
        self._together = v2.Compose([
            v2.RandomRotation(20, bilinear),
            v2.RandomGrayscale(0.7),
            v2.ColorJitter((0.4, 1.6), 0.3, 0.3, 0.08),
            v2.GaussianBlur(5, (0.3, 1.5)),
            Caption(),
            v2.RandomErasing(1.0, (0.04, 0.12), value=[int(255 * m) for m in IMAGENET_MEAN]),
            Jpeg(),
        ])  # fmt: skip
        self._erasing = v2.RandomErasing(s.erasing, (0.02, 0.2)) if s.erasing else v2.Identity()

    def __call__(self, images: Sequence[NDArray[np.uint8]], side: int) -> torch.Tensor:
        """Images (h, w, 3) uint8 -> (n, 3, side, side) float32, channels last in memory."""
        batch = torch.stack([self._framed(image, side) for image in images])
        varied = (self._changes()(group) for group in torch.split(batch, GROUP))
        groups = [self._erasing(normalised(group, self._backbone)) for group in varied]
        return torch.cat(groups).contiguous(memory_format=torch.channels_last)

    def _changes(self) -> v2.Compose:
        """What a group goes through: now and then everything at once."""
        return self._together if float(torch.rand(())) < self._settings.together else self._groupwise

    def _framed(self, image: NDArray[np.uint8], side: int) -> torch.Tensor:
        """One image, cropped, scaled, shifted and mirrored."""
        x: torch.Tensor = torch.from_numpy(image).permute(2, 0, 1)
        s = self._settings
        top, left, height, width = 0, 0, *x.shape[-2:]
        if s.area != (1.0, 1.0):
            top, left, height, width = _window(height, width, s.area)
        x = V.resized_crop(x, top, left, height, width, [side, side], antialias=True)
        if s.shift:
            down, right = torch.randint(2 * s.shift + 1, (2,)).tolist()
            x = V.pad(x, [s.shift] * 4, padding_mode="reflect")[:, down : down + side, right : right + side]
        return x.flip(-1) if float(torch.rand(())) < s.mirror else x


def _window(height: int, width: int, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop (Szegedy et al. 2015): share of the area and aspect are drawn."""
    share, aspect, down, right = torch.rand(4).tolist()
    kept = (area[0] + share * (area[1] - area[0])) * height * width
    ratio = _RATIO[0] * (_RATIO[1] / _RATIO[0]) ** aspect
    w = min(width, max(1, round((kept * ratio) ** 0.5)))
    h = min(height, max(1, round((kept / ratio) ** 0.5)))
    return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w


def normalised(images: torch.Tensor, backbone: str) -> torch.Tensor:
    """(n, 3, h, w) uint8 -> float32 with the backbone's mean and deviation, as the encoder feeds its network."""
    row = find_backbone(backbone)
    scaled = V.to_dtype(images, torch.float32, scale=True)
    result: torch.Tensor = V.normalize(scaled, list(row.mean), list(row.std))
    return result


def mixed(
    x: torch.Tensor, labels: Mapping[str, torch.Tensor], random: np.random.Generator
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """mixup (Zhang et al. 2018): images and labels blended with those of another order; shares from Beta(.4, .4)."""
    share = float(random.beta(0.4, 0.4))
    order = torch.from_numpy(random.permutation(len(x))).to(x.device)
    return (
        x.lerp(x[order], 1 - share),
        {level: values.lerp(values[order], 1 - share) for level, values in labels.items()},
    )


ROOM = 1.25
"""Kept images are this much larger than the largest input, so that crops stay sharp."""
_CHUNK = 512


class ImageCache:
    """Decoded images of about ``side`` * ``side`` pixels each, aspect kept, in a file without a name.

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
        images: Sequence[Found],
        side: int,
        *,
        workers: int | None,
        max_pixels: int | None,
        report: Callable[[int, int], None],
    ) -> tuple[ImageCache, list[int], list[Failure]]:
        """Decode images; ``report`` receives the numbers of images done and failed.

        Returns:
            The cache, the rows of ``images`` that are in it, in order, and the images that cannot be read.

        Raises:
            TrainingError: the disk is full.
        """
        cache = cls(tempfile.TemporaryFile(prefix="mgm-"))  # type: ignore[arg-type]  # noqa: SIM115  (the cache owns it)
        kept: list[int] = []
        failures: list[Failure] = []

        def read(found: Found) -> NDArray[np.uint8] | str:
            try:
                with opening(text_path(found.path), least=side, max_pixels=max_pixels) as decoded:
                    image = decoded.image
                    scale = min(1.0, side / (image.width * image.height) ** 0.5)
                    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
                    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))
            except ImageError as error:
                return str(error)

        try:
            with ThreadPoolExecutor(workers or os.cpu_count(), "mgm-decode") as pool:
                for start in range(0, len(images), _CHUNK):
                    for row, found in enumerate(pool.map(read, images[start : start + _CHUNK]), start):
                        if isinstance(found, str):
                            failures.append(Failure(images[row].path, found))
                        else:
                            cache._add(found)
                            kept.append(row)
                    report(min(start + _CHUNK, len(images)), len(failures))
            cache._close_file()
        except OSError as error:
            cache.close()
            raise TrainingError(
                f"the decoded images do not fit into {tempfile.gettempdir()}: {error.strerror}; they take "
                f"{len(images) * side * side * 3 / 1e9:.1f} GB: set TMPDIR to a folder with room, or train smaller"
            ) from error
        return cache, kept, failures

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
        """Image (h, w, 3) uint8."""
        height, width = self._shapes[row]
        start = self._starts[row]
        return self._flat[start : start + height * width * 3].reshape(height, width, 3)

    def _add(self, image: NDArray[np.uint8]) -> None:
        self._starts.append(self._starts[-1] + 3 * int(np.prod(self._shapes[-1])) if self._shapes else 0)
        self._shapes.append((image.shape[0], image.shape[1]))
        self._file.write(image.tobytes())

    def _close_file(self) -> None:
        self._file.flush()
        if self._shapes:
            # Copy on write: torch warns about arrays that cannot be written, though nobody writes.
            self._flat = np.memmap(self._file, np.uint8, "c")


@dataclass(frozen=True, slots=True)
class Batch:
    """Images as the network sees them.

    Attributes:
        rows: (n,) int64, indices of the images in the cache.
        views: one or two tensors (n, 3, side, side) float32, the same images varied differently.
    """

    rows: torch.Tensor
    views: tuple[torch.Tensor, ...]


class Batches(Dataset[Batch]):
    """The batches of one epoch. Each depends on the seed, the epoch and its place alone, whoever makes it."""

    def __init__(
        self, cache: ImageCache, rows: NDArray[np.int64], configuration: TrainingConfiguration, epoch: int, views: int
    ) -> None:
        self._cache = cache
        self._seed = (configuration.seed * 100_003 + epoch) * 1_000_003
        self._sides = configuration.sides(epoch)
        self._views = views
        self._augmenter = Augmenter(configuration.augmentation, configuration.backbone)
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
        images = [self._cache[row] for row in rows]
        views = []
        for _ in range(self._views):
            # Another order for every view: two views of an image must not share the changes of one group.
            order = torch.randperm(len(rows)) if self._views > 1 and len(rows) > GROUP else torch.arange(len(rows))
            made = self._augmenter([images[i] for i in order.tolist()], side)
            views.append(made[order.argsort()].contiguous(memory_format=torch.channels_last))
        return Batch(torch.from_numpy(rows), tuple(views))
