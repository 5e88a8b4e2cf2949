"""Mixed work on an index, step by step, with a model that knows what must be in it: for ``soak.py``."""

from __future__ import annotations

import hashlib
import http.client
import random
import shutil
from itertools import cycle
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mg_milvus.index import ImageIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FEWEST, MOST, AT_ONCE = 200, 400, 8
ASKED_A_STEP, REOPEN_AFTER = 6, 25
HALF = (16, 16, 32, 32)
"""The middle of an image of 64 x 64 pixels."""


class WrongAnswerError(Exception):
    """The index did not do what the model says."""


class MixedWork:
    """A folder of images that come, change and go; the index follows, and is asked meanwhile.

    Every answer is checked: an image finds itself at distance 0, an ingest counts what was done to the folder.

    Attributes:
        files: what must be in the index.
        done: work -> how often.
        written: rows, those of regions too.
    """

    def __init__(self, sources: Sequence[Path], folder: Path, uri: str, schema: str, page: str) -> None:
        self._sources, self._number = cycle(sources), 0
        self._folder, self._uri, self._schema = folder, uri, schema
        self._page = urlsplit(page).netloc
        self._dice = random.Random(0)
        self.files: list[Path] = []
        self.done: dict[str, int] = {}
        self.written = 0
        self.index = ImageIndex.open(uri, schema)
        parts = self.index.schema.regions
        self._rows_an_image = 1 + (parts.regions if parts else 0)
        while len(self.files) < FEWEST:
            self._new(50)
        self._ingest(added=len(self.files))

    def step(self) -> None:
        """Change the folder, bring the index up to date, ask some queries; sometimes open the index anew."""
        self._does(self._dice.choice(self._changes()))
        for _ in range(ASKED_A_STEP):
            self._does(self._dice.choice([self.by_image, self.by_id, self.by_part, self.by_page, self.page]))
        if self.done["steps"] % REOPEN_AFTER == 0:
            self._does(self.reopen)

    def add(self) -> None:
        self._new(AT_ONCE)
        self._ingest(added=AT_ONCE)

    def change(self) -> None:
        for file in self._dice.sample(self.files, AT_ONCE):
            shutil.copyfile(next(self._sources), file)
        self._ingest(updated=AT_ONCE)

    def prune(self) -> None:
        self._gone()
        self._ingest(removed=AT_ONCE)

    def delete(self) -> None:
        expected(self.index.delete(self._gone()), AT_ONCE)

    def by_image(self) -> None:
        file = self._dice.choice(self.files)
        self._found(file, self.index.query(file, k=10, weights={"coarse": 1, "mid": 1, "fine": 1}))

    def by_id(self) -> None:
        file = self._dice.choice(self.files)
        expected(len(self.index.like(file, k=10)), 10)

    def by_part(self) -> None:
        file = self._dice.choice(self.files)
        expected(len(self.index.query(file, k=10, crop=HALF)), 10)

    def by_page(self) -> None:
        body = self._dice.choice(self.files).read_bytes()
        self._fetch("POST", "/api/query?k=10", body)

    def page(self) -> None:
        self._fetch("GET", self._dice.choice(["/", "/api/info", "/api/sample?count=12", "/metrics"]))

    def reopen(self) -> None:
        self.index.close()
        self.index = ImageIndex.open(self._uri)

    def check(self) -> None:
        """Raise unless the index holds the files of the folder as they are, and nothing else."""
        self.reopen()
        store, schema = self.index.session.store, self.index.schema
        rows = {row.path: row.content_hash for batch in store.scan() for row in batch}
        there = {
            str(file): hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in self._folder.iterdir()
        }
        expected(set(map(str, self.files)), set(there))
        expected(rows, there)
        expected(store.count(), len(there))
        if schema.regions:
            expected(store.regions.count(), len(there) * schema.regions.count)

    def close(self) -> None:
        self.index.close()

    def _changes(self) -> list[Callable[[], None]]:
        fewer, more = [self.prune, self.delete], [self.add, self.add]
        return [self.change, *(fewer if len(self.files) > FEWEST else []), *(more if len(self.files) < MOST else [])]

    def _does(self, work: Callable[[], None]) -> None:
        work()
        self.done[work.__name__] = self.done.get(work.__name__, 0) + 1
        self.done["steps"] = self.done.get("steps", 0) + (work.__name__ in {"add", "change", "prune", "delete"})

    def _new(self, many: int) -> None:
        for _ in range(many):
            self._number += 1
            file = self._folder / f"{self._number:07}.jpg"
            shutil.copyfile(next(self._sources), file)
            self.files.append(file)

    def _gone(self) -> list[Path]:
        gone = self._dice.sample(self.files, AT_ONCE)
        for file in gone:
            file.unlink()
            self.files.remove(file)
        return gone

    def _ingest(self, added: int = 0, updated: int = 0, removed: int = 0) -> None:
        report = self.index.ingest(self._folder, prune=removed > 0, workers=1)
        self.written += (report.added + report.updated) * self._rows_an_image
        expected((report.added, report.updated, report.removed, report.failed), (added, updated, removed, 0))

    def _found(self, file: Path, hits: Sequence[object]) -> None:
        expected(len(hits), 10)
        nearest = [hit for hit in hits if sum(hit.distances.values()) == 0]  # type: ignore[attr-defined]
        if str(file) not in {hit.path for hit in nearest}:  # type: ignore[attr-defined]
            raise WrongAnswerError(f"{file} did not find itself, but {hits[0]}")

    def _fetch(self, method: str, path: str, body: bytes | None = None) -> None:
        connection = http.client.HTTPConnection(self._page, timeout=120)
        try:
            connection.request(method, path, body, {"content-type": "application/octet-stream"} if body else {})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise WrongAnswerError(f"{method} {path}: {answer.status} {text[:200]!r}")
        finally:
            connection.close()


def expected(got: object, wanted: object) -> None:
    if got != wanted:
        raise WrongAnswerError(f"got {got}, expected {wanted}")
