"""Names that strangers chose, shown to people: they cannot steer a terminal or a page, nor pose as other names.

File names, labels, values of fields and names of collections may hold control characters, turn the direction of text
around, or break lines. What is printed, and what templates show, goes through here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import PurePath

_JOINERS = "\u200c\u200d"
"""Format characters that emoji and several scripts are written with; all others are escaped."""


def printable(text: str) -> str:
    """Text on one line that cannot steer a terminal: control and direction characters and stray bytes are escaped."""
    return "".join(char if char.isprintable() or char in _JOINERS else _escape(char) for char in text)


def one_line(text: str, most: int = 200) -> str:
    """What a stranger said, within a sentence: printable, on one line, of at most about ``most`` characters."""
    # What is cut off is never looked at: it may be megabytes.
    return printable(" ".join(text[: 4 * most].split()))[:most] + ("…" if len(text) > most else "")


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def shown(value: object) -> object:
    """What a template writes for a value: plain text becomes printable; markup and numbers stay as they are."""
    return printable(value) if type(value) is str else value


def file_link(path: PurePath) -> str:
    """The ``file://`` URI of an absolute path of this machine; empty for any other.

    ``//host/share`` is absolute, too, but some systems would ask that host for it, with the user's name and password.
    """
    try:
        return path.as_uri() if path.is_absolute() and not str(path).startswith("//") else ""
    except UnicodeEncodeError:  # no file system has such a name
        return ""
