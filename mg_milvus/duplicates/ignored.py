"""Pairs of images that somebody has found to be no duplicates: a file of JSON lines that people can read.

A line is ``{"contents": [HASH, HASH], "paths": [PATH, PATH]}``. The hashes of the contents count, so a pair stays when
its files are moved or renamed; the paths are where the files were, for people.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.errors import ImageError, QueryError
from mg_milvus.files import one_line, read_plain
from mg_milvus.images.discover import content_hash
from mg_milvus.images.files import content_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mg_milvus.store.base import Row

_MOST_BYTES = 256 * 2**20
_HASH = re.compile(r"[0-9a-f]{32}")

Pair = tuple[str, str]
"""Hashes of two contents in order."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Pairs that are no duplicates, whatever their pixels say."""

    pairs: frozenset[Pair] = frozenset()

    def holds(self, left: Row, right: Row) -> bool:
        """Whether two rows are such a pair; a row without a content hash is in none."""
        return bool(self.pairs) and _pair(left.content_hash, right.content_hash) in self.pairs

    def places(self, contents: Sequence[str]) -> NDArray[np.int64]:
        """The pairs among n images, as left * n + right with left < right, sorted.

        Args:
            contents: content hash of each; empty where it is not known.
        """
        if not self.pairs:
            return np.empty(0, np.int64)
        named = {content for pair in self.pairs for content in pair}
        places: dict[str, list[int]] = defaultdict(list)
        for place, content in enumerate(contents):
            if content in named:
                places[content].append(place)
        found = [(a, b) for one, two in self.pairs for a in places.get(one, ()) for b in places.get(two, ())]
        return np.unique(np.array([min(pair) * len(contents) + max(pair) for pair in found], np.int64))


def _pair(one: str, two: str) -> Pair:
    return min(one, two), max(one, two)


def read_ignored(file: str | os.PathLike[str]) -> Ignored:
    """Read the pairs of a file.

    Raises:
        QueryError: it does not exist, cannot be read, or a line is no pair.
    """
    name = os.fspath(file)
    try:
        text = read_plain(file, _MOST_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise QueryError(
            f"'{name}' does not exist, expected a file of pairs that are no duplicates; "
            "mgm duplicates --ignore FILE --not-duplicates A B makes it"
        ) from None
    except UnicodeDecodeError:
        raise QueryError(f"'{name}' is not a text of UTF-8, expected a file that --not-duplicates made") from None
    except OSError as exc:
        raise QueryError(f"'{name}' cannot be read: {exc.strerror}") from exc
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return Ignored(frozenset(_parse(line, f"'{name}' line {n}") for n, line in lines))


def _parse(line: str, place: str) -> Pair:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    contents = value.get("contents") if isinstance(value, dict) else None
    if (
        not isinstance(contents, list)
        or len(contents) != 2
        or not all(isinstance(content, str) and _HASH.fullmatch(content) for content in contents)
        or contents[0] == contents[1]
    ):
        raise QueryError(
            f'{place} is {one_line(line, 60)!r}, expected {{"contents": [HASH, HASH], "paths": [PATH, PATH]}} with two '
            "different hashes of 32 hexadecimal digits; delete the line, and name the pair with --not-duplicates"
        )
    return _pair(*contents)


def add_ignored(file: str | os.PathLike[str], images: Sequence[tuple[str, str]]) -> int:
    """Add every pair of some images to a file, which is made if there is none.

    Args:
        file: its path.
        images: content hash and path of each.

    Returns:
        The number of pairs that it did not have.

    Raises:
        QueryError: there is one image only, two of them have the same content, or the file cannot be read or written.
    """
    name = os.fspath(file)
    if len(images) < 2:
        raise QueryError(f"{len(images)} image given, expected two or more that are no duplicates of each other")
    for (one, first), (two, second) in combinations(images, 2):
        if one == two:
            raise QueryError(
                f"'{first}' and '{second}' have the same content, expected different images; to keep both, name "
                "their folders with --reference"
            )
    known = read_ignored(file).pairs if os.path.exists(file) else frozenset()
    new = []
    for contents, paths in (zip(*pair, strict=True) for pair in combinations(sorted(images), 2)):
        if contents not in known:
            new.append(json.dumps({"contents": contents, "paths": paths}))
    try:
        with open(file, "a+b") as stream:  # one write at the end: others may add pairs at the same time
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            broken = end > 0 and stream.read(1) != b"\n"
            stream.write(("\n" * broken + "".join(f"{line}\n" for line in new)).encode())
    except OSError as exc:
        raise QueryError(f"'{name}' cannot be written: {exc.strerror}") from exc
    return len(new)


def file_content(path: str | os.PathLike[str]) -> str:
    """The content hash of an image file.

    Raises:
        ImageError: it is no image, or cannot be read.
    """
    try:
        with content_of(path) as data:
            return content_hash(data)
    except ImageError as error:
        raise ImageError(f"{os.fspath(path)!r} {error}") from error
