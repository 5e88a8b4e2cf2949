"""The encoder of a collection: kept beside it in the store, and a copy of it on this machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mg_milvus.display import one_line
from mg_milvus.encoder import load_encoder
from mg_milvus.encoder.files import write_private
from mg_milvus.errors import EncoderError, EncoderMismatchError
from mg_milvus.store.description import is_fingerprint

if TYPE_CHECKING:
    from mg_milvus.encoder import Encoder
    from mg_milvus.store import Store

WHOLE_FILE_LIMIT = 32_000_000
"""Encoder files up to this many bytes are kept whole in the store; of larger ones the heads only."""


def cache_folder() -> Path:
    """Where copies of encoders are kept: under ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mg-milvus" / "encoders"


def keep_encoder(store: Store, encoder: Encoder) -> None:
    """Put an encoder beside the collection, so that a URI is all that a client needs.

    One that is too large to be kept whole is also put into the cache, where its own backbone is not lost.
    """
    data = encoder.to_bytes()
    if len(data) > WHOLE_FILE_LIMIT:
        _cache(encoder.fingerprint, data)
        data = encoder.to_bytes(WHOLE_FILE_LIMIT)
    store.put_encoder(encoder.fingerprint, data)


def encoder_of(store: Store, fingerprint: str, *, device: str, base: Encoder | None = None) -> Encoder:
    """The encoder that filled the store's collection.

    A copy in the cache is used when its fingerprint is right, otherwise it is replaced by the store's. ``base`` lends
    its backbone to what is kept without one.

    Raises:
        EncoderMismatchError: the store does not have it, or what it has is another one.
        EncoderError: what it has is no encoder, or the fingerprint is none.
    """
    if not is_fingerprint(fingerprint):  # it becomes the name of a file
        raise EncoderError(f"{one_line(repr(fingerprint), 60)} is not a fingerprint, expected 16 hexadecimal digits")
    with suppress(EncoderError):
        cached = load_encoder(_copy(fingerprint), device=device, base=base)
        if cached.fingerprint == fingerprint:
            return cached
    data = store.get_encoder(fingerprint)
    if data is None:
        raise EncoderMismatchError(
            f"collection '{store.collection}' was filled by the encoder {fingerprint}, which is not kept beside it any "
            "more; give that encoder's file, or ingest into a new collection"
        )
    encoder = load_encoder(data, device=device, base=base)
    if encoder.fingerprint != fingerprint:
        raise EncoderMismatchError(
            f"collection '{store.collection}' was filled by the encoder {fingerprint}, but {encoder.fingerprint} is "
            "kept beside it; give the right encoder's file, or ingest into a new collection"
        )
    _cache(fingerprint, data)
    return encoder


def cached_encoders() -> dict[Path, int]:
    """The copies on this machine, with their bytes."""
    found = {}
    for file in sorted(cache_folder().glob("*.safetensors")):
        with suppress(OSError):
            found[file] = file.stat().st_size
    return found


def clear_encoders() -> list[Path]:
    """Remove the copies that collections hold whole, too.

    Returns:
        Those that were kept: of larger ones a collection holds the heads only, so the copy may be the last one.
    """
    kept = []
    for file, size in cached_encoders().items():
        if size > WHOLE_FILE_LIMIT:
            kept.append(file)
        else:
            with suppress(OSError):  # it goes on to be among cached_encoders
                file.unlink()
    return kept


def _copy(fingerprint: str) -> Path:
    return cache_folder() / f"{fingerprint}.safetensors"


def _cache(fingerprint: str, data: bytes) -> None:
    with suppress(OSError):  # a cache that cannot be written is no reason to fail
        write_private(_copy(fingerprint), data)
