"""Uses of what pymilvus and Milvus Lite do not document: for which versions, why, and the public way instead.

Each function of this module uses an internal of one package while the installed version ``is_known``. With any other
version it takes the documented way, which gives the same results, only slower; each docstring says what is lost.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from contextlib import closing, suppress
from functools import cache, partial
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from pymilvus import MilvusClient


KNOWN = {"pymilvus": "3.0.", "milvus-lite": "2.5."}
"""Package -> beginning of the versions whose internals were read and tested."""

META = "$meta"
"""Milvus' name of the field that holds the columns beyond those of the collection, as JSON."""

# A public setting of gRPC, whose C core otherwise writes to the terminal. It is read when the first channel opens.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@cache
def is_known(package: str) -> bool:
    """Whether the installed version of a package is one whose internals may be used."""
    try:
        return metadata.version(package).startswith(KNOWN[package])
    except metadata.PackageNotFoundError:
        return False


def upsert(
    client: MilvusClient, name: str, fields: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]],
    timeout: float,
) -> None:  # fmt: skip
    """Write records into a collection as columns.

    pymilvus 3.0: ``MilvusClient.upsert`` takes rows and packs them value by value, which takes more time than all the
    rest of an upsert together (benchmarks/store_overhead.py). Its own handler takes columns, as the ORM does.

    Args:
        client: connected.
        name: of the collection.
        fields: as Milvus describes them.
        records: each with a value for every field; under ``META`` those of other columns, in all records or in none.
        timeout: seconds.
    """
    if not is_known("pymilvus"):
        client.upsert(name, [_flat(record) for record in records], timeout=timeout)
        return
    from pymilvus import DataType
    from pymilvus.client.prepare import Prepare

    if META in records[0]:
        fields = [*fields, {"name": META, "type": DataType.JSON}]
    columns = [
        {"name": field["name"], "type": field["type"], "values": [record[field["name"]] for record in records]}
        for field in fields
    ]
    request = Prepare.batch_upsert_param(name, columns, "", fields)
    for data in request.fields_data:
        data.is_dynamic = data.field_name == META  # else servers write an empty one beside it
    client._get_connection().upsert(
        name, columns, timeout=timeout, context=client._generate_call_context(), schema={"fields": fields},
        upsert_param=request,
    )  # fmt: skip


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != META} | dict(record.get(META, {}))


def query_records(result: Any) -> list[dict[str, Any]]:
    """The rows of a query's response, with codes as bytes, and the values of columns beyond those of the collection.

    pymilvus 3.0: it cuts codes out of the response one by one as rows are read, which takes twice as long as the query
    itself (300 rows, 3 codes: 20 of 30 ms). Here each field is cut at once.
    """
    packed = getattr(result, "_lazy_field_data", None) if is_known("pymilvus") else None
    if packed is None:
        return [{name: _single(value) for name, value in row.items()} for row in result]
    rows: list[dict[str, Any]] = list(list.__iter__(result))
    for field in packed:
        if field.is_dynamic:
            for row, text in zip(rows, field.scalars.json_data.data, strict=True):
                if not isinstance(values := json.loads(text or "{}"), dict):
                    raise ValueError(f"the dynamic field is {text!r:.60}, expected an object")
                row.update({name: value for name, value in values.items() if name not in row})
            continue
        name, data, width = field.field_name, field.vectors.binary_vector, field.vectors.dim // 8
        for number, row in enumerate(rows):
            row[name] = data[number * width : (number + 1) * width]
    return rows


def _single(value: Any) -> Any:
    """pymilvus gives a code as a list of one."""
    return value[0] if type(value) is list and len(value) == 1 and type(value[0]) is bytes else value


def skip_scipy() -> None:
    """Let ``import scipy`` fail in this process, for programs of this package only.

    pymilvus 3.0: it loads SciPy, if installed, to see whether a value is a sparse matrix, which takes a third of a
    second; without SciPy it goes on. Python documents that ``None`` in ``sys.modules`` makes an import fail. Must be
    called before the first request. With another version SciPy is loaded.
    """
    if is_known("pymilvus"):
        sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]


def allow_scipy() -> None:
    """Undo ``skip_scipy``, for the one output that SciPy writes."""
    if "scipy" in sys.modules and sys.modules["scipy"] is None:
        del sys.modules["scipy"]


_PANDAS_TYPES = ("infer_dtype", "is_array_like", "is_float", "is_list_like", "is_scalar")


def skip_pandas() -> None:
    """Let pymilvus be imported without pandas and requests, for programs of this package only.

    pymilvus 3.0: it imports both, half a second together, to see whether an argument is a data frame, and to ask for
    the clusters of a global endpoint. Here its modules get stand-ins, which import the real ones when they are first
    used. Everyone else still imports the real ones: the stand-ins are known to Python only while pymilvus is imported,
    which is why this is for programs, where no other thread imports pandas at that moment. Must be called before
    pymilvus is imported. With another version both are loaded.
    """
    if is_known("pymilvus") and not {"pymilvus", "pandas", "requests"} & sys.modules.keys():
        sys.meta_path.insert(0, _ImportWithoutPandas())


class _ImportWithoutPandas(MetaPathFinder):
    """Finds pymilvus once, and has it executed beside the stand-ins."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != "pymilvus":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _BesideStandIns(spec.loader.name, spec.loader.path)
        return spec


class _BesideStandIns(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        types = _Later("pandas.api.types", **{name: partial(_call_pandas, name) for name in _PANDAS_TYPES})
        api = _Later("pandas.api", types=types)
        pandas = _Later("pandas", api=api, DataFrame=_DataFrame)
        stand_ins = {each.__name__: each for each in (_Later("requests"), pandas, api, types)}
        sys.modules.update(stand_ins)
        try:
            super().exec_module(module)
        finally:
            for name, each in stand_ins.items():
                if sys.modules.get(name) is each:
                    del sys.modules[name]


class _Later(ModuleType):
    """A module that is imported when something else of it than ``known`` is first asked for."""

    def __init__(self, name: str, **known: Any) -> None:
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system looks for
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


class _OfPandas(type):
    def __instancecheck__(cls, value: object) -> bool:
        pandas = sys.modules.get("pandas")  # without it there are no data frames
        return pandas is not None and isinstance(value, pandas.DataFrame)


class _DataFrame(metaclass=_OfPandas):
    """Has the same instances as pandas' own."""


def _call_pandas(name: str, value: object) -> Any:
    if name == "is_scalar" and isinstance(value, (str, int, float)):
        return True  # what default values of fields are
    return getattr(importlib.import_module("pandas.api.types"), name)(value)


def engine_program() -> Path | None:
    """The program of Milvus Lite's engine; None if pymilvus must start the engine itself, or there is none.

    milvus-lite 2.5: the package starts the same program, but lets it write to the terminal, leaves it in the reach of
    Ctrl-C, in the folder of the data and with the whole environment, waits half a second, and warns at import. With
    another version these stay, and ``mgm up`` is refused.
    """
    spec = importlib.util.find_spec("milvus_lite") if is_known("milvus-lite") else None
    program = Path(str(spec.origin)).resolve().parent / "lib" / "milvus" if spec else None
    return program if program is not None and program.exists() else None


def engine_command(program: Path, file: Path, address: str, lock: Path) -> list[str | Path]:
    """The command line of the engine, as milvus-lite 2.5 calls it; it ends when its starter's lock is gone."""
    return [program, file, address, "ERROR", lock]


def could_be_lite(file: Path) -> bool:
    """Whether an existing file can be Milvus Lite's, which puts its tables into any other SQLite file as well.

    milvus-lite 2.5: its files are SQLite's and have a table ``collection_meta``. With another version every file can
    be, and the engine decides.
    """
    import sqlite3

    if not is_known("milvus-lite"):
        return True
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=0.2)) as database:
            query = "SELECT count(*) FROM sqlite_master WHERE name = 'collection_meta'"
            return bool(database.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return True  # busy or not readable now: the engine reports it
    except sqlite3.DatabaseError:
        return False


_KEY = "milvus_id"
"""Column of the primary keys in the tables of Milvus Lite."""
LARGE = 50_000
"""Rows from which on an index over the keys is worth its 40 bytes a row: fewer are read in milliseconds."""


def index_keys(file: Path) -> None:
    """Create the missing indexes over the keys of a file's large tables; two seconds per million rows, once.

    milvus-lite 2.5: the engine keeps the rows of a collection in a table of SQLite without an index over their keys, so
    it reads the whole table to replace or remove a row, even a new one. With a million rows that takes twenty times as
    long as the rest of writing 64 of them (benchmarks/growth.py). SQLite uses an index by itself, and drops it together
    with the table. With another version no index is created.

    Only for the holder of the file's lock, while no engine runs: an engine that finds its file busy fails. A file that
    is not there or cannot be written to stays as it is.
    """
    import sqlite3

    if not is_known("milvus-lite") or not file.exists():
        return
    with (
        suppress(sqlite3.Error),  # the engine reports what is wrong with the file
        closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=0)) as database,
    ):
        for table in _large_tables(database):
            database.execute(f"CREATE INDEX IF NOT EXISTS {_quoted(f'mgm_{table}_keys')} ON {_quoted(table)} ({_KEY})")


def _large_tables(database: sqlite3.Connection) -> list[str]:
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        name
        for name in names
        if any(column[1] == _KEY for column in database.execute(f"PRAGMA table_info({_quoted(name)})"))
        # Rows are numbered on; counting them would read the whole table at every start.
        and (database.execute(f"SELECT max(id) FROM {_quoted(name)}").fetchone()[0] or 0) >= LARGE  # noqa: S608
    ]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
