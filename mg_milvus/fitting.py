"""``mgm fit``: an encoder file from a folder of pictures, without labels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mg_milvus.encoder import load_encoder, untrained_encoder
from mg_milvus.encoder.files import write_whole
from mg_milvus.errors import EncoderError, PictureError
from mg_milvus.hits import Failure, Progress
from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
from mg_milvus.images.discover import discover
from mg_milvus.ingest import FEWEST_TO_FIT, SAMPLE_SIZE, Settings, reservoir, sample_features
from mg_milvus.schema import Schema
from mg_milvus.schema_parts import PARTS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit did.

    Attributes:
        fingerprint: of the encoder made.
        pictures: that the heads were fitted on.
        failures: files that could not be read.
        seconds: wall time.
        bytes: size of the file.
    """

    fingerprint: str
    pictures: int
    failures: tuple[Failure, ...]
    seconds: float
    bytes: int


def fit_encoder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backbone: str = "builtin",
    bits: Mapping[str, int] | None = None,
    schema: Schema | None = None,
    sample: int = SAMPLE_SIZE,
    weights: str | os.PathLike[str] | None = None,
    method: Literal["adaptive", "itq", "lsh"] = "adaptive",
    device: str = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[Progress], None] | None = None,
) -> FitReport:
    """Fit hash heads over a backbone to pictures, and write the encoder file.

    Args:
        folder: pictures like those to be searched.
        out: the file to write, whole or not at all.
        backbone: ``builtin``, an encoder file (whose network is used), or a name of the table in
            ``encoder/backbones.py``.
        bits: granularity -> code length; default: the schema's.
        schema: what the codes are for; with its regions, unless ``bits`` are given. Default: the default schema.
        sample: pictures looked at, at most.
        weights: the backbone's weights; default: torchvision's pretrained ones.
        method: ``adaptive`` heads, which every collection fits again to its own pictures; or, to compare with, those of
            PCA and ITQ, or random hyperplanes (LSH), which collections keep as they are.
        device: where the backbone runs.
        batch_size: pictures per batch.
        workers: decoding threads.
        max_pixels: larger pictures are refused.
        progress: called after each batch.

    Raises:
        EncoderError: unknown backbone or granularity, or weights that do not fit.
        WeightsNotFoundError: pretrained weights are asked for and not to be had.
        PictureError: the folder does not exist, or has too few pictures.
    """
    started = time.perf_counter()
    schema = schema or Schema()
    lengths = schema.code_bits if bits is None else bits
    if backbone == "builtin":
        if weights is not None:
            raise EncoderError("the built-in encoder has its weights; name a backbone (mgnet) to use others")
        base = load_encoder("builtin", device=device)
    elif Path(backbone).suffix == ".safetensors":
        base = load_encoder(backbone, device=device)
    else:
        base = untrained_encoder(backbone, weights, device=device)
    base = base.with_regions(schema.parts.windows if schema.parts and PARTS in lengths else ())
    base.check(lengths)
    if base.regions and method != "adaptive":
        raise EncoderError(f"regions have adaptive heads only, not those of {method}: take a schema without 'parts'")
    failures: list[Failure] = []
    chosen, _ = reservoir(discover([folder], failures.append), sample)
    told = progress or (lambda _: None)
    read, features = sample_features(
        chosen, base, Settings(batch_size, workers, max_pixels),
        lambda done: told(Progress("reading pictures to fit the hash heads", done, len(chosen), len(failures))),
    )  # fmt: skip
    failures += [Failure(picture.found.path, picture.failure) for picture in read if picture.failure is not None]
    good = sum(picture.failure is None for picture in read)
    if good < FEWEST_TO_FIT:
        raise PictureError(
            f"{folder} has {good} readable pictures, expected at least {FEWEST_TO_FIT} to fit hash heads; add more, or "
            "use the encoder 'builtin' as it is"
        )
    encoder = base.adapted(features, lengths) if method == "adaptive" else base.baseline(features, lengths, method)
    if encoder is base:
        raise EncoderError(
            f"the hash heads of {backbone} were trained and are kept; only the methods itq and lsh replace them"
        )
    data = encoder.to_bytes()
    try:
        write_whole(Path(out), data)
    except OSError as error:
        raise EncoderError(f"the encoder cannot be written to {out}: {error.strerror}") from error
    return FitReport(encoder.fingerprint, good, tuple(failures), time.perf_counter() - started, len(data))
