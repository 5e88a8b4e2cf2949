"""What the Milvus at hand can do, tried out: the store's contract in scratch collections, which are removed again."""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mg_milvus import __version__
from mg_milvus.codes import hamming
from mg_milvus.errors import AuthenticationError, MgMilvusError, StoreError, StoreUnavailableError, UnsupportedError
from mg_milvus.files import one_line
from mg_milvus.schema.models import (
    ExtraField,
    FusionSettings,
    Granularity,
    RegionScale,
    RegionSettings,
    Schema,
    StorageSettings,
    region_id,
)
from mg_milvus.store.base import Description, HybridSearch, Row
from mg_milvus.store.client import connect
from mg_milvus.store.milvus import MilvusStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.config import MilvusConfig

Outcome = Literal["works", "refused", "fails", "not tried"]

_log = logging.getLogger(__name__)
_PREFIX = "mgm_conformance_"
_ROWS = 1_500
"""More than the 1,024 from which on servers build an index."""
_WITH_REGIONS = 30
_TAKEN, _DAY = 1_704_067_200 * 10**9, 86_400 * 10**9
"""2024-01-01, when the first image was taken, and the time between two, in nanoseconds."""
_INDEX_TIMEOUT = 60.0
_FINGERPRINT = "0123456789abcdef"
_STORAGE = StorageSettings(nlist=16, nprobe=16)
"""All clusters are searched, so results are exact."""
_REGIONS = RegionSettings(bits=16, scales=(RegionScale(size=0.6, grid=2),))
_SCHEMA = Schema(
    granularities=(Granularity(name="coarse", bits=16), Granularity(name="fine", bits=64)),
    fields=(
        ExtraField(name="label", type="string", default="none", max_length=20),
        ExtraField(name="year", type="int"),
        ExtraField(name="price", type="float"),
        ExtraField(name="sold", type="bool"),
    ),
    regions=_REGIONS,
    storage=_STORAGE,
)
_VARIANTS: dict[str, Mapping[str, Any]] = {
    "index BIN_FLAT": {"index": "BIN_FLAT"},
    "index BIN_IVF_FLAT": {"index": "BIN_IVF_FLAT"},
    "index HNSW": {"index": "HNSW"},
    "codes mapped from disk": {"mmap": True},
    "2 shards": {"shards": 2},
    "partition key": {"partition_key": "label"},
}
"""Feature -> what a schema says for it; each is tried in a collection of its own."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of the store, tried against a server.

    Attributes:
        name: of the feature.
        outcome: "works"; "refused": this server or user cannot have it, which is said beforehand; "fails": an error, or
            a wrong result; "not tried": what it needs fails.
        message: what was compared, or the reason, in one line.
        seconds: how long it took.
    """

    name: str
    outcome: Outcome
    message: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Conformance:
    """What a server can do.

    Attributes:
        server: its name and version.
        versions: package -> version on this machine.
        features: in the order in which they were tried.
        left: scratch collections that could not be removed, or that another run has left.
    """

    server: str
    versions: Mapping[str, str]
    features: tuple[Feature, ...]
    left: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing fails, nothing was left untried, and nothing was left behind."""
        return not self.left and not any(each.outcome in {"fails", "not tried"} for each in self.features)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {"ok": self.ok, **asdict(self)}


class _WrongResultError(Exception):
    """A response differs from what the rows say."""


def conformance(config: MilvusConfig, progress: Callable[[Feature], None] | None = None) -> Conformance:
    """Try out every feature of the store on a server, in scratch collections ``mgm_conformance_…``.

    They are removed at the end, also after an error or an interrupt. Collections of others are not touched. A Milvus
    Lite file that does not exist is not created; a temporary one is used.

    Args:
        config: the server; its collection is ignored.
        progress: called with each feature when it was tried.

    Returns:
        What works, what does not, and why.

    Raises:
        StoreError: the server cannot be reached at all.
    """
    with contextlib.ExitStack() as leaving:
        if config.is_file and not Path(config.uri).exists():
            folder = leaving.enter_context(tempfile.TemporaryDirectory(prefix="mgm-"))
            config = replace(config, uri=str(Path(folder) / "conformance.db"))
        trial = _Trial(config)
        leaving.callback(trial.close)
        features = []
        try:
            for feature in trial.run():
                features.append(feature)
                if progress is not None:
                    progress(feature)
        finally:
            left = trial.clean()
        versions = {"mg-milvus": __version__, "pymilvus": metadata.version("pymilvus")}
        return Conformance(trial.label, versions, tuple(features), left)


class _Trial:
    """The scratch collections, and the features that are tried in them one after the other."""

    def __init__(self, config: MilvusConfig) -> None:
        self.name = _PREFIX + secrets.token_hex(4)
        self._config = replace(config, collection=self.name)
        self._connection = connect(self._config)
        self._client = self._connection.client
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._connection.close)
        self._names, self._aliases = [self.name], [f"{self.name}_alias"]
        self.label = self._connection.engine.label

    def run(self) -> Iterator[Feature]:
        """Try every feature; each needs the ones before it that create and write."""
        steps: dict[str, Callable[[], str]] = {
            "several granularities": self._granularities,
            "create and describe": self._create,
            "write and count": self._write,
            "search": self._search,
            "codes with a search": self._codes_with_a_search,
            "fetch and scan": self._fetch,
            "filters": self._filters,
            "missing values": self._missing,
            "replace and delete": self._replace,
            "flush, index, load": self._flush,
            "released by another client": self._released,
            "another client": self._other_client,
            "server fusion, equal weights": partial(self._fusion, {"coarse": 2.0, "fine": 2.0}),
            "server fusion, other weights": partial(self._fusion, {"coarse": 3.0, "fine": 1.0}),
            "regions": self._regions,
            "stored encoder": self._encoder,
            "tuned weights": self._tuned,
            "alias": self._alias,
            **{name: partial(self._variant, dict(changes)) for name, changes in _VARIANTS.items()},
            "drop": self._drop,
        }
        needed = {"create and describe", "write and count"}
        because = ""
        for name, step in steps.items():
            if because:
                yield Feature(name, "not tried", because, 0.0)
                continue
            outcome, message, gone, seconds = self._attempt(step)
            yield Feature(name, outcome, message, seconds)
            if gone:
                because = f"the server went away during '{name}'"
            elif name in needed and outcome != "works":
                because = f"'{name}' does not work"

    @staticmethod
    def _attempt(step: Callable[[], str]) -> tuple[Outcome, str, bool, float]:
        """The outcome, its message, whether the server is away now, and seconds."""
        outcome: Outcome = "works"
        begun, gone = time.monotonic(), False
        try:
            message = step()
        except UnsupportedError as exc:
            outcome, message = "refused", str(exc)
        except MgMilvusError as exc:
            outcome, message, gone = "fails", str(exc), isinstance(exc, StoreUnavailableError)
        except Exception as exc:  # noqa: BLE001 - a server may send anything
            outcome, message = "fails", f"{type(exc).__name__}: {exc}".removeprefix("_WrongResultError: ")
        return outcome, one_line(message, 500), gone, round(time.monotonic() - begun, 3)

    def close(self) -> None:
        """Close all connections."""
        self._stack.close()

    def clean(self) -> tuple[str, ...]:
        """Remove all scratch collections; the names of those that are left, of this run or another."""
        for alias in self._aliases:
            with contextlib.suppress(StoreError):
                self._call(self._client.drop_alias, alias)
        for name in self._names:
            try:
                with contextlib.closing(MilvusStore(replace(self._config, collection=name))) as store:
                    store.drop()
            except StoreError as exc:
                _log.warning("the scratch collection '%s' may be left: %s", name, exc)
        try:
            left = [name for name in self._call(self._client.list_collections) if name.startswith(_PREFIX)]
        except StoreError:
            return tuple(self._names)
        return tuple(sorted(left))

    def _call(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self._connection.call(partial(operation, *arguments, timeout=self._config.timeout, **options))

    def _open(self, name: str) -> MilvusStore:
        store = MilvusStore(replace(self._config, collection=name))
        self._stack.callback(store.close)
        return store

    # The features.

    def _granularities(self) -> str:
        self._store = self._open(self.name)
        self._schema = _SCHEMA.model_copy(update={"collection": self.name})
        try:
            self._store.check(self._schema)
        except UnsupportedError:
            self._schema = self._schema.model_copy(update={"granularities": self._schema.granularities[:1]})
            raise
        return f"{len(self._schema.granularities)} in a collection"

    def _create(self) -> str:
        description = Description(self._schema, _FINGERPRINT, adapted_on=7)
        _check(self._store.create(description) == description, "its description is another one than was written")
        _check(self._store.describe() == description, "its description is not read as it was written")
        parts = [f"{name} {bits} bits" for name, bits in self._schema.bits.items()]
        return ", ".join([*parts, f"{len(self._schema.fields)} fields", f"{_REGIONS.count} regions an image"])

    def _write(self) -> str:
        self._rows = _rows(self._schema)
        self._store.upsert(self._rows)
        _check_equal("rows", self._store.count(), _ROWS)
        return f"{_ROWS:,} rows, read as soon as they are written"

    def _search(self) -> str:
        self._check_exact(self._store, 3)
        return f"equals a comparison with all rows, on {', '.join(self._schema.bits)}"

    def _check_exact(self, store: MilvusStore, seed: int) -> None:
        random = np.random.default_rng(seed)
        for name, bits in self._schema.bits.items():
            queries = random.integers(0, 256, (2, bits // 8), np.uint8)
            codes = _stack(self._rows, name)
            for own, found in zip(hamming(queries, codes), store.nearest(name, queries, 20), strict=True):
                _check_equal(f"distances on {name}", found.distances.tolist(), np.sort(own)[:20].tolist())
                there = dict(zip((row.id for row in self._rows), own.tolist(), strict=True))
                _check_equal(f"ids on {name}", [there[i] for i in found.ids], found.distances.tolist())

    def _codes_with_a_search(self) -> str:
        written = {row.id: row.codes for row in self._rows}
        for name, bits in self._schema.bits.items():
            known: dict[str, Mapping[str, bytes]] = {}
            (found,) = self._store.nearest(name, np.zeros((1, bits // 8), np.uint8), 10, known=known)
            if not known:
                raise UnsupportedError("codes are fetched after a search: this server returns none with it")
            _check_equal("codes", known, {i: written[i] for i in found.ids})
        return "on every granularity"

    def _fetch(self) -> str:
        names = list(self._schema.bits)
        some = [replace(row, region_codes=b"") for row in self._rows[:300]]
        wanted = {row.id: row for row in some}
        _check_equal("rows by id", self._store.fetch([*wanted, "f" * 32], names), wanted)
        scanned = {row.id for rows in self._store.scan() for row in rows}
        _check_equal("rows of a scan", len(scanned), _ROWS)
        return "300 rows by id, all of them by an iterator"

    def _filters(self) -> str:
        expected: dict[str, Callable[[int], bool]] = {
            "size == 3": lambda n: n == 3,
            'taken >= "2024-01-11"': lambda n: n >= 10,
            "size < 10 or size >= 1490": lambda n: n < 10 or n >= 1490,
            "year in [2001, 2003] and sold == true": lambda n: n % 5 in {1, 3} and n % 2 == 0,
            "label not in ['label 1']": lambda n: n % 7 != 1,
            'path like "/images/3%"': lambda n: str(n).startswith("3"),
            "price >= 2.5 && price < 5 || not (size > 0)": lambda n: 10 <= n < 20 or n == 0,
        }
        for where, chosen in expected.items():
            _check_equal(where, self._store.count(where), sum(map(chosen, range(_ROWS))))
        query = np.zeros((1, self._schema.bits["coarse"] // 8), np.uint8)
        (found,) = self._store.nearest("coarse", query, 20, "size < 7")
        _check_equal("a search with size < 7", set(found.ids), {row.id for row in self._rows[:7]})
        return ", ".join(("comparisons", "in", "like", "and", "or", "not", "with a search"))

    def _missing(self) -> str:
        row = replace(self._rows[0], fields={"year": 1999}, region_codes=b"")
        self._store.upsert([row])
        fields = self._store.fetch([row.id])[row.id].fields
        _check_equal("fields", dict(fields), {"label": "none", "year": 1999, "price": None, "sold": None})
        _check_equal("sold is null", self._store.count("sold is null"), 1)
        self._store.upsert([replace(self._rows[0], region_codes=b"")])
        return "defaults, null, is null"

    def _replace(self) -> str:
        last = self._rows[-1]
        moved = replace(last, path="/moved.jpg", codes={name: b"\xff" * len(code) for name, code in last.codes.items()})
        self._store.upsert([moved])
        _check_equal("rows after a replacement", self._store.count(), _ROWS)
        _check_equal("the row", self._store.fetch([last.id], list(last.codes)), {last.id: moved})
        gone = [row.id for row in self._rows[-10:]]
        _check_equal("deleted rows", self._store.delete([*gone, "f" * 32]), 10)
        self._rows = self._rows[:-10]
        _check_equal("rows after a deletion", self._store.count(), len(self._rows))
        self._check_exact(self._store, 4)
        return "1 row replaced, 10 deleted, seen at once"

    def _flush(self) -> str:
        self._call(self._client.flush, self.name)
        self._wait_for_index()
        self._call(self._client.release_collection, self.name)
        self._check_exact(self._store, 5)
        _check_equal("rows after loading", self._store.count(), len(self._rows))
        kind, _ = self._connection.engine.index(self._schema)
        return f"{kind} over all rows; results are the same"

    def _wait_for_index(self) -> None:
        """Wait until the server has built the index of every field; Milvus Lite's is always there."""
        give_up = time.monotonic() + _INDEX_TIMEOUT
        for name in () if self._connection.engine.lite else self._schema.bits:
            while (rows := self._indexed_rows(name)) < len(self._rows):
                _check(
                    time.monotonic() < give_up,
                    f"the index of '{name}' covers {rows:,} of {len(self._rows):,} rows after {_INDEX_TIMEOUT:.0f} s",
                )
                time.sleep(0.2)

    def _indexed_rows(self, name: str) -> int:
        return int(self._call(self._client.describe_index, self.name, name)["indexed_rows"])

    def _released(self) -> str:
        self._call(self._client.release_collection, self.name)
        _check_equal("rows", self._store.count(), len(self._rows))
        return "loaded again by the next request"

    def _other_client(self) -> str:
        other = self._open(self.name)
        _check(other.describe() == self._store.describe(), "it reads another description")
        self._store.upsert([replace(self._rows[1], path="/seen.jpg", region_codes=b"")])
        _check_equal("the row it reads", other.fetch([self._rows[1].id])[self._rows[1].id].path, "/seen.jpg")
        self._store.upsert([replace(self._rows[1], region_codes=b"")])
        self._check_exact(other, 6)
        return "reads the description, and rows as soon as they are written"

    def _fusion(self, weights: Mapping[str, float]) -> str:
        """The first five rows have the ranks 1 to 5 on coarse and another order on fine; without ties."""
        queries = {name: np.zeros((2, bits // 8), np.uint8) for name, bits in self._schema.bits.items()}
        used = {name: weight for name, weight in weights.items() if name in queries}
        search = HybridSearch(used, k=3, depth=5, rrf_k=10, where="size < 5")
        ranks = {"coarse": (1, 2, 3, 4, 5), "fine": (4, 5, 1, 2, 3)}
        scores = [sum(weight / (10 + ranks[name][n]) for name, weight in used.items()) for n in range(5)]
        best = sorted(range(5), key=lambda n: -scores[n])[:3]
        for own in self._store.hybrid(queries, search):
            _check_equal("fused rows", [i for i, _ in own], [self._rows[n].id for n in best])
            close = np.allclose([score for _, score in own], [scores[n] for n in best], rtol=1e-5)
            _check(close, f"scores {[score for _, score in own]}, expected {[scores[n] for n in best]}")
        return "ranks and scores by hand"

    def _regions(self) -> str:
        regions, with_codes = self._store.regions, self._rows[:_WITH_REGIONS]
        _check_equal("regions", regions.count(), _WITH_REGIONS * _REGIONS.count)
        query = np.zeros((1, 2), np.uint8)
        codes = np.stack([np.frombuffer(row.region_codes, np.uint8) for row in with_codes]).reshape(-1, 2)
        ids = [region_id(row.id, number) for row in with_codes for number in range(_REGIONS.count)]
        exact = dict(zip(ids, hamming(query, codes)[0].tolist(), strict=True))
        (found,) = regions.nearest(0, query, 10)
        _check_equal("distances of regions", found.distances.tolist(), sorted(exact.values())[:10])
        _check_equal("regions", [exact[i] for i in found.ids], found.distances.tolist())
        self._store.delete([with_codes[-1].id])
        _check_equal("regions after a deletion", regions.count(), (_WITH_REGIONS - 1) * _REGIONS.count)
        self._store.upsert([with_codes[-1]])
        return f"{_WITH_REGIONS * _REGIONS.count} in a collection of their own, exact, in step with the images"

    def _encoder(self) -> str:
        data = np.random.default_rng(0).bytes(300_001)
        self._store.put_encoder(_FINGERPRINT, data)
        _check(self._store.get_encoder(_FINGERPRINT) == data, "the file read is another one than was written")
        return f"{len(data):,} bytes in a collection beside it"

    def _tuned(self) -> str:
        names = list(self._schema.bits)
        weights = dict.fromkeys(names, 0.5) | {names[0]: 1.0}
        changed = self._store.retune(weights, FusionSettings(rrf_k=20))
        _check_equal("weights", changed.schema.weights, weights)
        _check(self._store.describe() == changed, "the new description is not read as it was written")
        return "recorded beside the collection"

    def _alias(self) -> str:
        if self._connection.engine.lite:
            raise UnsupportedError("Milvus Lite has no aliases")
        alias = self._aliases[0]
        try:
            self._call(self._client.create_alias, self.name, alias)
        except AuthenticationError as exc:
            raise UnsupportedError(str(exc)) from exc
        with contextlib.closing(self._open(alias)) as store:
            _check_equal("the collection of the alias", store.collection, self.name)
            _check_equal("rows", store.count(), len(self._rows))
            _check(store.get_encoder(_FINGERPRINT) is not None, "its encoder is not found")
        self._call(self._client.drop_alias, alias)
        return "stands for the collection and what is stored beside it"

    def _variant(self, changes: dict[str, Any]) -> str:
        """A collection with one setting of the schema, and a search in it."""
        name = f"{self.name}_{len(self._names)}"
        mapped = changes.pop("mmap", None)
        granularity = Granularity(name="coarse", bits=16, mmap=mapped)
        schema = Schema(
            collection=name, granularities=(granularity,), fields=_SCHEMA.fields,
            storage=_STORAGE.model_copy(update=changes),
        )  # fmt: skip
        store = self._open(name)
        store.check(schema)
        self._names.append(name)
        store.create(Description(schema, _FINGERPRINT))
        rows = [replace(row, codes={"coarse": row.codes["coarse"]}, region_codes=b"") for row in self._rows[:50]]
        store.upsert(rows)
        query = np.zeros((1, 2), np.uint8)
        (found,) = store.nearest("coarse", query, 10)
        exact = np.sort(hamming(query, _stack(rows, "coarse"))[0])[:10]
        _check_equal("distances", found.distances.tolist(), exact.tolist())
        if mapped:
            index = self._call(self._client.describe_index, name, "coarse")
            _check(str(index.get("mmap.enabled")).lower() == "true", f"the index says {index}")
        store.drop()
        return "created, written, searched exactly"

    def _drop(self) -> str:
        self._store.drop()
        own = [name for name in self._call(self._client.list_collections) if name.startswith(self.name)]
        _check_equal("collections that are left", own, [])
        return "the collection and all that was stored beside it"


def _check(correct: bool, message: str) -> None:
    if not correct:
        raise _WrongResultError(message)


def _check_equal(what: str, found: object, expected: object) -> None:
    _check(found == expected, f"{what}: {one_line(repr(found), 150)}, expected {one_line(repr(expected), 150)}")


def _stack(rows: list[Row], name: str) -> Codes:
    return np.stack([np.frombuffer(row.codes[name], np.uint8) for row in rows])


def _rows(schema: Schema) -> list[Row]:
    """Random codes; the first five rows have distances to zero that differ, in another order on each granularity."""
    random = np.random.default_rng(0)
    codes = {name: random.integers(0, 256, (_ROWS, bits // 8), np.uint8) for name, bits in schema.bits.items()}
    for name, order in (("coarse", (0, 1, 2, 3, 4)), ("fine", (3, 4, 0, 1, 2))):
        if name in codes:
            for number, ones in enumerate(order):
                codes[name][number] = _ones(ones, schema.bits[name])
    regions = random.integers(0, 256, (_WITH_REGIONS, _REGIONS.bytes_per_image), np.uint8)
    return [
        Row(
            id=f"{number:032x}",
            path=f"/images/{number}.jpg",
            size=number,
            mtime_ns=1_700_000_000_000_000_000 + number,
            width=640,
            height=480,
            content_hash=f"{number:032x}",
            taken=_TAKEN + number * _DAY,
            codes={name: own[number].tobytes() for name, own in codes.items()},
            fields={
                "label": f"label {number % 7}",
                "year": 2000 + number % 5,
                "price": number / 4,
                "sold": number % 2 == 0,
            },
            region_codes=regions[number].tobytes() if number < _WITH_REGIONS else b"",
        )
        for number in range(_ROWS)
    ]


def _ones(count: int, bits: int) -> NDArray[np.uint8]:
    return np.frombuffer(((1 << count) - 1).to_bytes(bits // 8), np.uint8)
