"""Whether the heads of an encoder file can work at all: asked when it is loaded, not at the first picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.encoder.manifold import ManifoldHead
from mg_milvus.encoder.readings import width
from mg_milvus.encoder.table import find_backbone
from mg_milvus.encoder.weights import BFLOAT16, single
from mg_milvus.errors import EncoderError
from mg_milvus.schema_parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.encoder.artefact import Configuration
    from mg_milvus.encoder.fit import Head, Statistics
    from mg_milvus.encoder.weights import Weights


def check_widths(
    configuration: Configuration, heads: Mapping[str, Head | ManifoldHead], moments: Mapping[str, Statistics],
    origin: str,
) -> None:  # fmt: skip
    """Compare what heads and statistics take with what is read of the backbone, without building it.

    Raises:
        EncoderError: they differ, or a stage is read that the backbone does not have.
    """
    row = find_backbone(configuration.backbone)
    channels = dict(zip(row.stages, row.channels, strict=True))
    for name, reading in configuration.readings.items():
        if unknown := sorted(set(reading.stages) - channels.keys()):
            raise EncoderError(
                f"{origin}: {name} reads the stage '{unknown[0]}', {row.name} has {', '.join(channels)}: make the file "
                "again with mgm fit"
            )
        expected = width(reading.model_copy(update={"pooling": "gem"}) if name == PARTS else reading, channels)
        taken = [made[name].mean.shape for made in (heads, moments) if name in made]
        if name in moments:
            matrices = (moments[name].factor, moments[name].nuisance)
            taken += [matrix.shape[1:] for matrix in matrices if matrix is not None]
        for shape in taken:
            if shape != (expected,):
                raise EncoderError(
                    f"{origin}: the head of {name} does not work (it is for features of the shape {shape}, and "
                    f"{row.name} gives {expected} numbers): make the file again with mgm fit"
                )


def check_numbers(backbone: Weights, origin: str) -> None:
    """Refuse weights that make every code the same.

    Raises:
        EncoderError: some of them are no numbers.
    """
    for name, values in backbone.items():
        if not np.isfinite(single(values) if values.dtype == BFLOAT16 else values).all():
            raise EncoderError(f"{origin}: the weights {name} hold values that are no numbers: take other weights")


def check_heads(heads: Mapping[str, Head | ManifoldHead], origin: str) -> None:
    """Try each head, so that one that was made to fail fails here.

    Raises:
        EncoderError: its matrices do not fit together, or hold what is no number.
    """
    for name, head in heads.items():
        wrong: object
        if isinstance(head, ManifoldHead) and not head.neighbours:
            wrong = f"it ties pictures to no number of its {len(np.atleast_1d(head.anchors))} anchors"
        elif head.projection.ndim != 2:
            wrong = f"its projection has the shape {head.projection.shape}"
        else:
            wrong = _tried(head)
        if wrong is not None:
            raise EncoderError(
                f"{origin}: the head of {name} does not work ({wrong}): make the file again with mgm fit"
            )


def check_moments(moments: Mapping[str, Statistics], origin: str) -> None:
    """Look at the statistics, which heads of other lengths are made from later.

    Raises:
        EncoderError: they hold what is no number, or no rows.
    """
    for name, own in moments.items():
        matrices = [matrix for matrix in (own.factor, own.nuisance) if matrix is not None]
        if any(matrix.ndim != 2 or not matrix.size for matrix in matrices):
            raise EncoderError(
                f"{origin}: the statistics of {name} have the shapes {[matrix.shape for matrix in matrices]}, expected "
                "rows of numbers: make the file again with mgm fit"
            )
        if not all(np.isfinite(values).all() for values in (own.mean, *matrices)):
            raise EncoderError(
                f"{origin}: the statistics of {name} hold values that are no numbers: make the file again with mgm fit"
            )


def _tried(head: Head | ManifoldHead) -> object:
    """What is wrong with the codes of a head, None when nothing is."""
    try:
        codes = head(np.zeros((1, max(1, head.mean.size)), np.float32))
    except (ValueError, IndexError) as error:
        return error
    if codes.shape != (1, head.bits) or head.bits % 8 or not head.bits:
        return f"codes of the shape {codes.shape}"
    if not np.isfinite(codes).all():
        return "codes that are no numbers"
    return None
