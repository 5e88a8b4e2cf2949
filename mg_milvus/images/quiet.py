"""How is Pillow kept from writing to the user's terminal? What matters of what it says is in its exceptions."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
import warnings

from PIL import _imaging

_IGNORED = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)


def silence_libraries() -> None:
    """Once a process: Pillow's log lines, and the lines that libtiff writes to standard error by itself."""
    # A handler of its own keeps log lines from Python's handler of last resort, which writes to the terminal.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    # No such symbol: a Pillow without libtiff, or a platform that hides it; then its lines stay.
    with contextlib.suppress(OSError, AttributeError):
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def silence_warnings() -> None:
    """Before each picture: what Pillow warns of (damaged EXIF and the like) while it can still go on.

    ``warnings.catch_warnings`` is not safe between threads, and a filter set once may since have been overruled.
    Decompression bomb warnings, which a host program may rely on, are not silenced: decoding here raises none.
    """
    if warnings.filters[:1] != [_IGNORED]:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
