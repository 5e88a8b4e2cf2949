"""A folder of codes, here or in a bucket: which files belong to which shard, and which shards are finished.

    shard-0001-of-0004-000000-1f2e3d4c.parquet   the first part of shard 1/4; the last word is a hash of its content
    shard-0001-of-0004.json                      says that the shard is finished, and which files it has
    encoder-d35e4c05dd9f84b7.safetensors         the encoder that made all of them

A part is written whole or not at all and never changed: machines that share the folder cannot get in each other's way.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mg_milvus.bulk.parquet import CodeFile
from mg_milvus.bulk.remote import bucket
from mg_milvus.encoder.files import write_whole
from mg_milvus.errors import CodeFileError, QueryError
from mg_milvus.images.discover import is_url, picture_id
from mg_milvus.plain_files import open_plain

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

_SHARD = r"shard-(\d{4,6})-of-(\d{4,6})"
_PART = re.compile(rf"({_SHARD})-(\d{{6,12}})-[0-9a-f]{{8}}\.parquet")
_MARK_BYTES = 32 << 20
"""Longest mark that is read; one of a shard of a billion pictures has half of it."""
_ENCODER_BYTES = 4 << 30
"""Longest encoder that is read."""
_ENCODER = re.compile(r"encoder-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True, slots=True)
class Shard:
    """One share of the pictures: number ``number``, from 1, of ``count``."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise QueryError(f"there is no shard {self.number}/{self.count}: expected NUMBER from 1 to COUNT")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/4`` -> the second of four.

        Raises:
            QueryError: it is written otherwise.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None:
            raise QueryError(f"'{text}' is not a shard: expected NUMBER/COUNT, such as 2/4 for the second of four")
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        """How its files begin."""
        return f"shard-{self.number:04}-of-{self.count:04}"

    def holds(self, path: str) -> bool:
        """Whether the picture file, tar or table at this path is of this share. A hash of the path decides."""
        return int(picture_id(path), 16) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class Place(Protocol):
    """A folder that holds files, not folders."""

    def names(self) -> list[str]:
        """The names of its files, sorted; none where there is no such folder."""

    def open(self, name: str) -> BinaryIO:
        """A file, open for reading at any position."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all; makes the folder."""

    def remove(self, name: str) -> None:
        """Remove a file."""


class _Local:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        return sorted(path.name for path in self._path.iterdir()) if self._path.exists() else []

    def open(self, name: str) -> BinaryIO:
        return open_plain(self._path / name)

    def write(self, name: str, data: bytes) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        write_whole(self._path / name, data)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class _Bucket:
    """A folder in a bucket, where a file appears when it is whole."""

    def __init__(self, url: str) -> None:
        self._system, path = bucket(url)
        self._path = path.rstrip("/")

    def names(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            entries = self._system.ls(self._path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

    def open(self, name: str) -> BinaryIO:
        # Parts are small, and reading one takes many small steps.
        return io.BytesIO(self._system.cat_file(f"{self._path}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        self._system.pipe_file(f"{self._path}/{name}", data)

    def remove(self, name: str) -> None:
        self._system.rm_file(f"{self._path}/{name}")


class CodeFolder:
    """The files of codes in one folder.

    Every method raises CodeFileError when the folder cannot be read or written.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = str(name)
        self._place: Place = _Bucket(self.name) if is_url(self.name) else _Local(Path(self.name))

    def parts(self, shard: Shard | None = None) -> list[str]:
        """Names of the parts, of one shard or of all, in the order they were written; of all: shard after shard."""
        found = [(match, name) for name in self._names() if (match := _PART.fullmatch(name))]
        return [name for match, name in found if shard is None or match[1] == shard.name]

    def shards(self) -> set[Shard]:
        """The shards that there are parts or marks of."""
        pattern = re.compile(rf"{_SHARD}(-.*\.parquet|\.json)")
        matches = [match for name in self._names() if (match := pattern.fullmatch(name))]
        try:
            return {Shard(int(match[1]), int(match[2])) for match in matches}
        except QueryError as error:
            raise CodeFileError(f"{self.name}: {error}, but a file has such a name: remove it") from error

    @contextmanager
    def part(self, name: str) -> Iterator[CodeFile]:
        """One part, opened."""
        with self._guarded("read"):
            file = self._place.open(name)
        with file:
            yield CodeFile(f"{self.name.rstrip('/')}/{name}", file)

    def add_part(self, shard: Shard, data: bytes) -> str:
        """Write another part of a shard; its name."""
        mine = self.parts(shard)
        number = 1 + max((int(match[4]) for name in mine if (match := _PART.fullmatch(name))), default=-1)
        name = f"{shard.name}-{number:06}-{hashlib.blake2b(data, digest_size=4).hexdigest()}.parquet"
        with self._guarded("written"):
            self._place.write(name, data)
        return name

    def finish(self, shard: Shard, rows: Mapping[str, int]) -> None:
        """Mark a shard as finished, with these parts and their rows."""
        text = json.dumps({"mg_milvus": 1, "shard": str(shard), "files": dict(rows)}, indent=1)
        with self._guarded("written"):
            self._place.write(f"{shard.name}.json", text.encode())

    def finished(self, shard: Shard) -> dict[str, int] | None:
        """Part -> rows of a shard that is finished; None when it is not."""
        name = f"{shard.name}.json"
        if name not in self._names():
            return None
        try:
            with self._guarded("read"), self._place.open(name) as file:
                text = file.read(_MARK_BYTES + 1)
            told: Any = json.loads(text) if len(text) <= _MARK_BYTES else None
            files: dict[str, int] = told["files"]
            if not all(type(rows) is int and rows >= 0 for rows in files.values()):
                raise TypeError
            return files
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CodeFileError(f"{self.name}/{name} is damaged: run mgm encode --shard {shard} again") from error

    def encoders(self) -> list[str]:
        """Fingerprints of the encoders that are kept in the folder."""
        return [match[1] for name in self._names() if (match := _ENCODER.fullmatch(name))]

    def encoder(self, fingerprint: str) -> bytes:
        """The file of an encoder.

        Raises:
            CodeFileError: it is not in the folder.
        """
        name = f"encoder-{fingerprint}.safetensors"
        if name not in self._names():
            raise CodeFileError(f"{self.name} has codes of the encoder {fingerprint}, but no {name}: put it there")
        with self._guarded("read"), self._place.open(name) as file:
            data = file.read(_ENCODER_BYTES + 1)
        if len(data) > _ENCODER_BYTES:
            raise CodeFileError(f"{self.name}/{name} has more than {_ENCODER_BYTES:,} bytes, which no encoder has")
        return data

    def keep_encoder(self, fingerprint: str, data: bytes) -> None:
        """Put the file of an encoder into the folder."""
        with self._guarded("written"):
            self._place.write(f"encoder-{fingerprint}.safetensors", data)

    def clean(self, shard: Shard) -> None:
        """Remove what a run of this shard left half-written when it was killed."""
        with self._guarded("written"):
            for name in self._names():
                if name.startswith(f".{shard.name}"):
                    self._place.remove(name)

    def _names(self) -> list[str]:
        with self._guarded("read"):
            return self._place.names()

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each protocol's library has exceptions of its own
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            raise CodeFileError(f"{self.name} cannot be {what}: {reason}") from error
