"""A training from a folder to an encoder file.

Images without labels have pseudo-labels: clusters of their features (Caron et al., DeepCluster, ECCV 2018).
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mg_milvus.encoder.torch_runtime import resolve_device
from mg_milvus.errors import LabelError, TrainingError
from mg_milvus.evaluation.labels import read_labelled
from mg_milvus.records import Failure, Progress
from mg_milvus.training.checkpoint import checkpoint_beside, refuse_unfinished, require_checkpoint
from mg_milvus.training.config import TrainingConfiguration
from mg_milvus.training.data import ROOM, ImageCache
from mg_milvus.training.export import Weights, encoder_of, features_of, first_weights, poolings_of
from mg_milvus.training.losses import LEVELS
from mg_milvus.training.network import HashingNetwork
from mg_milvus.training.trainer import Job, Material, Trainer

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from mg_milvus.evaluation.labels import Labelled
    from mg_milvus.training.trainer import StepReport


ROUNDS = 25


def spherical_kmeans(features: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int64]:
    """Cluster of each row (n,), by cosine (Dhillon and Modha 2001); no cluster stays empty.

    Args:
        features: (n, d); centred and scaled to length 1 here.
        clusters: how many; at most n.
        seed: of the first centres, which are rows far from each other (k-means++, Arthur and Vassilvitskii 2007).
    """
    random = np.random.default_rng(seed)
    x = features - features.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
    chosen = [int(random.integers(len(x)))]
    distance = (1 - x @ x[chosen[0]]).clip(min=0)
    while len(chosen) < clusters:
        distance[chosen[-1]] = 0
        total = distance.sum(dtype=np.float64)
        # Once only copies of the centres are left, any row will do.
        chances = distance.astype(np.float64) / total if total > 0 else None
        chosen.append(int(random.choice(len(x), p=chances)))
        distance = np.minimum(distance, (1 - x @ x[chosen[-1]]).clip(min=0))
    centres = x[chosen]
    nearest = np.zeros(len(x), np.int64)
    for _ in range(ROUNDS):
        similarity = x @ centres.T
        found = similarity.argmax(axis=1)
        for empty in np.setdiff1d(np.arange(clusters), found):
            sizes = np.bincount(found, minlength=clusters)
            # The image that fits its own cluster worst begins a new one; clusters of one image are left alone.
            fit = np.where(sizes[found] > 1, similarity[np.arange(len(x)), found], np.inf)
            found[fit.argmin()] = empty
            similarity[fit.argmin(), empty] = np.inf
        if (found == nearest).all():
            break
        nearest = found
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, x)
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(min=1e-12)
    return nearest


def pseudo_labels(features: NDArray[np.float32], seed: int) -> dict[str, NDArray[np.bool_]]:
    """Labels of two levels: about the root of n classes, and the root of that many groups: level -> (n, labels)."""
    classes = max(2, round(len(features) ** 0.5))
    return {
        level: np.eye(count, dtype=np.bool_)[spherical_kmeans(features, count, seed)]
        for level, count in {"classes": classes, "groups": max(2, round(classes**0.5))}.items()
    }


FEWEST_IMAGES = 20
MOST_HELD_OUT = 2_000


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training did.

    Attributes:
        fingerprint: of the encoder.
        images: trained on.
        held_out: images that judged the epochs.
        labels: level -> number of labels; empty when clusters took their place.
        epochs: whole epochs done, those before a resumption included.
        best_epoch: the one whose weights were kept, from 1.
        history: one record an epoch: losses, held-out mAP per granularity, seconds.
        failures: files that could not be read or have no label.
        seconds: wall time of this run.
        bytes: size of the encoder file.
    """

    fingerprint: str
    images: int
    held_out: int
    labels: Mapping[str, int]
    epochs: int
    best_epoch: int
    history: tuple[Mapping[str, float], ...]
    failures: tuple[Failure, ...]
    seconds: float
    bytes: int


def train(  # noqa: PLR0913 - public: keyword options of the command
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    configuration: TrainingConfiguration | None = None,
    *,
    labels: str | os.PathLike[str] | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    loaders: int = 0,
    max_pixels: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    on_step: Callable[[StepReport], None] = lambda _: None,
    on_epoch: Callable[[Mapping[str, float]], None] = lambda _: None,
) -> TrainReport:
    """Train hash functions, and the network under them, on a folder of images; write the encoder file.

    Args:
        folder: images; its folders are the labels, nested ones a hierarchy (group/class).
        out: the encoder file; the checkpoint lies beside it. Both are written whole or not at all, after every epoch.
        configuration: see ``TrainingConfiguration``.
        labels: a table of labels instead of folders.
        resume: go on from the checkpoint beside ``out``; the result is that of a training that never stopped.
        stop_after: leave after this epoch, counted from the first one of all; ``resume`` goes on.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        workers: decoding threads.
        loaders: processes that make batches; 0: this one, which is best on a CPU.
        max_pixels: larger images are refused; default: as in ``ImageIndex.ingest``.
        progress: called while the images are read.
        on_step: called after every step.
        on_epoch: called after every epoch: its number, losses, held-out metrics and seconds.

    Raises:
        ImageError: the folder does not exist.
        LabelError: the labels do not fit the images, or all images have the same.
        TrainingError: too few images, no room on the disk or in memory, or a checkpoint of another training.
        EncoderError: unknown backbone, or weights that do not fit it.
    """
    started = time.perf_counter()
    settings = (configuration or TrainingConfiguration()).with_recipe()
    where = resolve_device(device)
    target = Path(out).absolute()
    if not target.parent.is_dir():
        raise TrainingError(f"the folder {target.parent} for the encoder file does not exist; make it first")
    (require_checkpoint if resume else refuse_unfinished)(checkpoint_beside(target))
    torch.manual_seed(settings.seed)
    base = first_weights(settings)
    failures: list[Failure] = []
    labelled = read_labelled(folder, labels, failures.append)
    _check(labelled, folder)
    side = round(ROOM * max(settings.side, *(side for phase in settings.phases for side in phase.sides)))
    cache, kept, unreadable = ImageCache.fill(
        labelled.images, side, workers=workers, max_pixels=max_pixels,
        report=lambda done, failed: progress(
            Progress("reading images", done, len(labelled), len(failures) + failed)
        ),
    )  # fmt: skip
    failures += unreadable
    with cache:
        labelled = labelled.subset(kept)
        _check(labelled, folder)
        levels = _levels(labelled)
        train_rows, held_out = split(levels.get("classes"), len(labelled), settings.held_out, settings.seed)
        known = {level: values.shape[1] for level, values in levels.items()}
        if not levels:
            levels = _clusters(settings, base, cache, where)
        classifiers = {name: levels[level].shape[1] for name, level in LEVELS.items()}
        network = HashingNetwork(
            settings, base, poolings_of(settings),
            {k: v for k, v in classifiers.items() if k in settings.bits} if settings.weights.softmax else {},
        )  # fmt: skip
        trainer = Trainer(
            settings, Material(cache, levels, train_rows, held_out), network, base, Job(target, where, loaders)
        )  # fmt: skip
        setup: dict[str, object] = {
            "configuration": settings.model_dump(mode="json"),
            "images": _digest(labelled),
        }
        encoder = trainer.run(setup, resume=resume, stop_after=stop_after, on_step=on_step, on_epoch=on_epoch)
    course = trainer.course
    return TrainReport(
        encoder.fingerprint, len(train_rows), len(held_out), known, course.epoch, course.best_epoch,
        tuple(course.history), tuple(failures), time.perf_counter() - started, target.stat().st_size,
    )  # fmt: skip


def split(
    classes: NDArray[np.bool_] | None, count: int, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows held out, each in order: ``share`` of every class, ``MOST_HELD_OUT`` at most.

    Classes of one image are trained on; every other class keeps at least one image on either side.
    """
    random = np.random.default_rng(seed)
    share = min(share, MOST_HELD_OUT / count)
    first = np.zeros(count, np.int64) if classes is None else classes.argmax(axis=1)
    held: list[int] = []
    for label in np.unique(first):
        rows = random.permutation(np.flatnonzero(first == label))
        # A class of a few images gives one now and then, so that the share of all is right.
        expected = share * len(rows)
        held += rows[: min(int(expected + random.random()), len(rows) - 1)].tolist()
    held = held or [int(random.integers(count))]
    return np.setdiff1d(np.arange(count), held), np.array(sorted(held), np.int64)


def _check(labelled: Labelled, folder: str | os.PathLike[str]) -> None:
    if len(labelled) < FEWEST_IMAGES:
        raise TrainingError(
            f"{folder} has {len(labelled)} readable images, expected at least {FEWEST_IMAGES} to train on; add "
            "more, or fit the heads of an encoder instead: mgm fit"
        )
    if labelled.classes is not None and len({m for own in labelled.classes.members for m in own}) < 2:
        raise LabelError(
            f"all images of {folder} have the label '{labelled.classes.names[labelled.classes.members[0][0]]}', "
            "expected at least two labels; give the folder above, or images without label folders to train without"
        )


def _levels(labelled: Labelled) -> dict[str, NDArray[np.bool_]]:
    if labelled.classes is None or labelled.groups is None:
        return {}
    return {"classes": labelled.classes.one_hot(), "groups": labelled.groups.one_hot()}


def _clusters(
    settings: TrainingConfiguration, base: Mapping[str, torch.Tensor], cache: ImageCache, device: torch.device
) -> dict[str, NDArray[np.bool_]]:
    """Clusters of what the network sees before it is trained, in place of labels."""
    network = HashingNetwork(settings, base, poolings_of(settings), {})
    images = [Image.fromarray(cache[row]) for row in range(len(cache))]
    weights = Weights(base, network.state_dict())
    features = features_of(encoder_of(settings, weights, str(device)), images)
    return pseudo_labels(features["mid" if "mid" in features else next(iter(features))], settings.seed)


def _digest(labelled: Labelled) -> str:
    """16 hexadecimal digits over the images' names, sizes and labels, wherever their folder lies."""
    digest = hashlib.blake2b(digest_size=8)
    for row, found in enumerate(labelled.images):
        own = labelled.classes.members[row] if labelled.classes else ()
        digest.update(f"{Path(found.path).name}:{found.size}:{own};".encode())
    return digest.hexdigest()
