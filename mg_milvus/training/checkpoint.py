"""The checkpoint of a training: how far it is, written whole, read with suspicion."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from mg_milvus.errors import TrainingError
from mg_milvus.files import read_plain, write_whole

if TYPE_CHECKING:
    from pathlib import Path

    import torch


_KEY = "mg_milvus_training"
_MOST_BYTES = 16 << 30
"""Largest checkpoint that is read: a network, its average and its optimizer's state, of the largest backbone."""


@dataclass(slots=True)
class Course:
    """How far a training is.

    Attributes:
        setup: ``configuration``, and ``images``, a digest of them and their labels; a checkpoint of another setup is
            refused.
        epoch: whole epochs done.
        pieces: contents that a batch is divided into so that it fits into memory.
        best: the best held-out mAP.
        best_epoch: the epoch it is of, from 1; 0: none yet.
        history: one record an epoch, with its losses, metrics and seconds.
    """

    setup: dict[str, Any]
    epoch: Annotated[int, Field(ge=0)] = 0
    pieces: Annotated[int, Field(ge=1)] = 1
    best: float = -1.0
    best_epoch: Annotated[int, Field(ge=0)] = 0
    history: list[dict[str, float]] = field(default_factory=list)


_COURSE = TypeAdapter(Course)


def checkpoint_beside(out: Path) -> Path:
    """Where the checkpoint of the encoder file ``out`` lies."""
    return out.with_name(f"{out.stem}.checkpoint.safetensors")


def refuse_unfinished(file: Path) -> None:
    """Keep a new training from writing over one that was stopped half-way.

    Raises:
        TrainingError: the checkpoint is there, and more epochs were to come.
    """
    if not file.exists():
        return
    try:
        _, course = load_checkpoint(file)
        configuration = course.setup["configuration"]
        epochs = sum(phase["epochs"] for phase in configuration["phases"])
        patience = configuration["patience"]
    except (TrainingError, KeyError, TypeError):
        return  # nothing that anybody could go on from
    if course.epoch < epochs and course.epoch - course.best_epoch < patience:
        raise TrainingError(
            f"{file} holds an unfinished training, {course.epoch} of {epochs} epochs: go on with --resume, or delete "
            "it to begin again"
        )


def require_checkpoint(file: Path) -> None:
    """Say early that there is nothing to go on from.

    Raises:
        TrainingError: there is no checkpoint.
    """
    if not file.exists():
        raise TrainingError(f"there is no checkpoint {file} to go on from; start without --resume")


def save_checkpoint(file: Path, tensors: dict[str, torch.Tensor], course: Course) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        TrainingError: the disk is full, or the folder cannot be written.
    """
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write(file, save_tensors(kept, metadata={_KEY: json.dumps(asdict(course))}))


def load_checkpoint(file: Path) -> tuple[dict[str, torch.Tensor], Course]:
    """Read a checkpoint.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
    try:
        data = read_plain(file, _MOST_BYTES)
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length])["__metadata__"][_KEY]
        _COURSE.validate_json(text)  # refuses what is nested deeply or of other types
        course = Course(**json.loads(text))
    except OSError as error:
        raise TrainingError(f"the checkpoint {file} cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{file} is not a checkpoint of mgm train, or is damaged: start without --resume"
        ) from error
    return tensors, course


def write(file: Path, data: bytes) -> None:
    """Write a file of a training, with errors in one line.

    Raises:
        TrainingError: it cannot be written; what was there before stays.
    """
    try:
        write_whole(file, data)
    except OSError as error:
        raise TrainingError(
            f"{file} ({len(data) / 1e6:.0f} MB) cannot be written: {error.strerror}; make room, then go on with "
            "--resume"
        ) from error
