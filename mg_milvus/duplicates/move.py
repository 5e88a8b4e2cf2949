"""Copies moved out of the way: into a folder, with a journal there, from which they are put back. Nothing is deleted.

The journal is a file of JSON lines in the folder. A line with ``from`` and ``to`` is written, and is on the disk,
before a file is moved; a line with ``back`` after it was put back. Rows of moved files leave the index, and are kept
whole in the journal. No file is ever overwritten, neither there nor on the way back.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import threading
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import MgMilvusError, QueryError
from mg_milvus.files import one_line
from mg_milvus.images.discover import content_hash, image_id, is_url, path_text, text_path
from mg_milvus.images.paths import Disks
from mg_milvus.records import Failure
from mg_milvus.schema.models import REGIONS
from mg_milvus.store.base import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mg_milvus.duplicates.report import DuplicateReport, GroupMember
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Store

JOURNAL = "moved.jsonl"
IGNORE = ".mgmignore"
_moving = threading.Lock()
"""One at a time writes the journal."""


@dataclass(frozen=True, slots=True)
class MoveReport:
    """What was moved, or put back.

    Attributes:
        batch: name of the folder in the folder that the files went to, or came from; empty when there was nothing.
        files: paths of the files, as they were before and are again.
        failures: files that stayed where they were, and why.
    """

    batch: str
    files: tuple[str, ...]
    failures: tuple[Failure, ...]

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {
            "batch": self.batch, "files": list(self.files), "failures": [asdict(failure) for failure in self.failures],
        }  # fmt: skip


def check_choice(report: DuplicateReport, ids: Sequence[str]) -> list[GroupMember]:
    """The chosen members of a report.

    Raises:
        QueryError: an id is in no group, its file is not there as it was ingested, or a group would lose all its images
            whose files are there.
    """
    chosen, known = set(ids), {member.id: member for group in report.groups for member in group.members}
    for wanted in ids:
        if wanted not in known:
            raise QueryError(f"image {one_line(wanted, 40)} is in no group of this search: search again")
    disks, members = Disks(), []
    for group in report.groups:
        own = [member for member in group.members if member.id in chosen]
        if not own:
            continue
        stays = [member for member in group.members if member.id not in chosen]
        for member in own:
            if disks.state(member.path, member.size, member.mtime_ns) != "here":
                raise QueryError(f"the file of {member.path} is gone, or was changed since its ingest: search again")
        if not any(disks.state(member.path, member.size, member.mtime_ns) == "here" for member in stays):
            raise QueryError(f"all images of the group of {own[0].path} would go: keep one of them")
        members += own
    return members


def move_members(store: Store, schema: Schema, members: Sequence[GroupMember], folder: Path) -> MoveReport:
    """Move the files of members, with their other names and the other files of their shots, into a new folder.

    Args:
        store: their rows leave it.
        schema: the collection's.
        members: as ``check_choice`` returns them.
        folder: holds the journal, and a folder for each call.

    Raises:
        QueryError: there are none, or the folder cannot be written.
    """
    paths = list(
        dict.fromkeys(path for m in members for path in (m.path, *m.names, *m.parts) if not _is_elsewhere(path))
    )
    if not paths:
        raise QueryError("there is nothing to move: tick at least one image whose file is on this machine")
    rows = _whole_rows(store, schema, [image_id(path) for path in paths])
    batch = f"{datetime.now().astimezone():%Y-%m-%d-%H%M%S}-{secrets.token_hex(2)}"
    moved, failures = [], []
    with _moving:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), open(folder / IGNORE, "x", encoding="utf-8") as stream:
                stream.write("*\n")  # an ingest must not find them again
            top = os.path.commonpath([os.path.dirname(text_path(path)) for path in paths])
            (folder / batch).mkdir()
            for path in paths:
                source = text_path(path)
                target = folder / batch / os.path.relpath(source, top)
                row = rows.get(image_id(path))
                _append(folder, {"batch": batch, "from": path, "to": path_text(target), "row": _packed(row)})
                try:
                    _move(source, target)
                except OSError as error:
                    failures.append(Failure(path, error.strerror or str(error)))
                    _append(folder, {"back": path_text(target)})
                else:
                    moved.append(path)
        except OSError as error:
            if not moved:
                raise QueryError(f"'{folder}' cannot be written: {error.strerror}; name another folder") from error
            failures.append(Failure(str(folder), error.strerror or str(error)))
        store.delete([image_id(path) for path in moved if image_id(path) in rows])
    return MoveReport(batch, tuple(moved), tuple(failures))


def undo_move(store: Store, folder: Path) -> MoveReport:
    """Put the files of the last batch back that was not put back yet, and their rows into the index.

    A file whose old place is taken stays where it is, and is in ``failures``; so is one whose row could not be written.
    """
    with _moving:
        entries = list(_pending(folder))
        if not entries:
            return MoveReport("", (), ())
        batch = entries[-1]["batch"]
        done, failures, rows = [], [], []
        for entry in reversed([entry for entry in entries if entry["batch"] == batch]):
            source, target = text_path(entry["from"]), text_path(entry["to"])
            try:
                _put_back(source, target)
            except OSError as error:
                failures.append(Failure(entry["from"], f"{error.strerror or error}; it is at {target}"))
                continue
            _append(folder, {"back": entry["to"]})
            done.append(entry["from"])
            if entry["row"] is not None:
                rows.append(_unpacked(entry["row"]))
        for row in rows:
            try:
                store.upsert([row])
            except MgMilvusError as error:
                failures.append(Failure(row.path, f"its row cannot be written: {error}; mgm ingest adds it again"))
        with suppress(OSError):  # not empty: some files stay
            for place, _, _ in os.walk(folder / batch, topdown=False):
                os.rmdir(place)
    return MoveReport(batch, tuple(done), tuple(failures))


def can_undo(folder: Path) -> bool:
    """Whether a file was moved, and not put back."""
    return next(_pending(folder), None) is not None


def _is_elsewhere(path: str) -> bool:
    return is_url(path) and not path.startswith("file://")


def _put_back(source: Path, target: Path) -> None:
    """Move ``target`` to ``source`` again; nothing to do where it never left."""
    if os.path.lexists(target):
        if os.path.lexists(source) and os.path.samestat(os.lstat(source), os.lstat(target)):
            os.unlink(target)  # a crash left two names of the one file
            return
        _move(target, source)
    elif not os.path.lexists(source):
        raise FileNotFoundError(None, "the file is in neither place")


def _move(source: Path, target: Path) -> None:
    """Move a file, or a link itself; an existing target is never replaced.

    Raises:
        OSError: it stays where it was.
    """
    if os.path.lexists(target):
        raise FileExistsError(None, f"there is another file at {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise FileExistsError(None, f"there is another file at {target}") from None
    except OSError:  # another disk, or one without hard links
        _copy(source, target)
    os.unlink(source)


def _copy(source: Path, target: Path) -> None:
    """Copy to a name that does not exist, and compare."""
    if stat.S_ISLNK(os.lstat(source).st_mode):
        os.symlink(os.readlink(source), target)
        return
    with open(source, "rb") as read, open(target, "xb") as written:
        try:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())
            shutil.copystat(source, target)
            if content_hash(source.read_bytes()) != content_hash(target.read_bytes()):
                raise OSError(None, "the copy differs from the file")
        except OSError:
            os.unlink(target)
            raise


def _append(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to the journal; it is on the disk when this returns."""
    with open(folder / JOURNAL, "ab") as stream:
        stream.write(json.dumps(line).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _pending(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of files that were moved and not put back, oldest first.

    Raises:
        QueryError: the journal cannot be read.
    """
    lines: list[dict[str, Any]] = []
    try:
        text = (folder / JOURNAL).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"the journal '{folder / JOURNAL}' cannot be read: {one_line(str(error))}") from error
    for number, line in enumerate(text.splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            if number < text.count("\n"):  # a crash cuts the last line only, before its file was moved
                raise QueryError(
                    f"line {number} of the journal '{folder / JOURNAL}' is damaged: {one_line(line, 60)}; files are in "
                    "the folders beside it"
                ) from None
    back = {line["back"] for line in lines if "back" in line}
    yield from (line for line in lines if "to" in line and line["to"] not in back)


def _whole_rows(store: Store, schema: Schema, ids: Sequence[str]) -> dict[str, Row]:
    """The rows of those that are indexed, with all codes."""
    rows = store.fetch(ids, tuple(schema.bits))
    regions = store.regions.codes(list(rows)) if REGIONS in schema.code_bits and rows else {}
    return {i: replace(row, region_codes=regions.get(i, b"")) for i, row in rows.items()}


def _packed(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    values = {name: getattr(row, name) for name in Row.__slots__}
    return values | {
        "codes": {name: b64encode(code).decode() for name, code in row.codes.items()},
        "region_codes": b64encode(row.region_codes).decode(), "fields": dict(row.fields), "tags": list(row.tags),
    }  # fmt: skip


def _unpacked(values: dict[str, Any]) -> Row:
    codes = {name: b64decode(code) for name, code in values["codes"].items()}
    return Row(**values | {
        "codes": codes, "region_codes": b64decode(values["region_codes"]), "tags": tuple(values["tags"]),
    })  # fmt: skip
