"""The index over keys that Milvus Lite's file lacks.

The engine (2.5.1) keeps the rows of a collection in a table of SQLite, without an index over their keys: to replace or
remove a row it reads the whole table, also for one that is new. With a million rows that takes twenty times as long as
the rest of writing 64 of them (benchmarks/growth.py). SQLite uses an index for whoever asks, so the engine needs no
change, and it removes the index together with the table.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


KEY = "milvus_id"
"""The column of the keys."""
LARGE = 50_000
"""Rows from which on an index is worth its 40 bytes a row: fewer are read in milliseconds."""


def index_keys(file: Path) -> None:
    """Make the missing indexes over keys of a file's large tables, which takes two seconds a million rows, once.

    Only for who has the file's lock, while no engine runs: one that finds its file busy fails. A file that is not there
    or cannot be written to stays as it is: the index saves time, and nothing else depends on it.
    """
    if not file.exists():
        return
    with (
        suppress(sqlite3.Error),  # what is wrong with the file is the engine's to say
        closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=0)) as database,
    ):
        for table in _tables(database):
            database.execute(f"CREATE INDEX IF NOT EXISTS {_quoted(f'mgm_{table}_keys')} ON {_quoted(table)} ({KEY})")


def _tables(database: sqlite3.Connection) -> list[str]:
    """The tables that hold the rows of a large collection."""
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        name
        for name in names
        if any(column[1] == KEY for column in database.execute(f"PRAGMA table_info({_quoted(name)})"))
        # Rows are numbered on; to count them would read the whole table at every start.
        and (database.execute(f"SELECT max(id) FROM {_quoted(name)}").fetchone()[0] or 0) >= LARGE  # noqa: S608
    ]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
