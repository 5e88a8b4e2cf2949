"""The largest image that this process decodes, unless a call says otherwise."""

from __future__ import annotations

import os

from mg_milvus.errors import ImageError

DEFAULT_MAX_PIXELS = 200_000_000
VARIABLE = "MGM_MAX_PIXELS"
"""Variable of the environment that holds another limit."""

_limit: int | None = None


def limit_pixels(most: int | None) -> None:
    """Set the limit of this process; None: that of the environment, or the default."""
    global _limit
    _limit = most


def pixel_limit(given: int | None = None) -> int:
    """The limit that a call gave, or else that of this process.

    Raises:
        ImageError: the environment holds none.
    """
    if given is not None or _limit is not None:
        return given if given is not None else _limit or 0
    text = os.environ.get(VARIABLE)
    if not text:
        return DEFAULT_MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise ImageError(
            f"is not read: {VARIABLE} is {text!r}, expected a number of pixels such as {DEFAULT_MAX_PIXELS}"
        )
    return int(text)
