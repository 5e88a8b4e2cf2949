"""``mgm doctor``: checks of packages, device, encoder and collection, each with its remedy; recall of the indexes."""

from __future__ import annotations

import platform
import random
import re
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.errors import (
    AuthenticationError,
    MgMilvusError,
    PrivilegeError,
    StoreLockedError,
    StoreUnavailableError,
)
from mg_milvus.files import one_line
from mg_milvus.schema.models import REGIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.config import MilvusConfig
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Row, Store


_SEED = 7
"""Of the random sample of queries, so that a recall can be measured again."""

RANGES = {
    "pymilvus": ((3, 0, 2), (4,)),
    # Milvus Lite 3 has no binary vectors.
    "milvus-lite": ((2, 5, 1), (3,)),
    # Milvus Lite 2.5 imports pkg_resources, which setuptools 82 no longer has.
    "setuptools": ((0,), (82,)),
    "onnxruntime": ((1, 19), (2,)),
    "torch": ((2, 6), (3,)),
    "torchvision": ((0, 21), (1,)),
    "Pillow": ((11, 3), (100,)),
}
"""Package -> first version that works, first that does not."""

LITE_SYSTEMS = ("Linux", "Darwin")

ENOUGH_RECALL = 0.95
"""Recall that an index should have: fusion cannot add the rows that it misses."""

REMEDIES: dict[type[MgMilvusError], str] = {
    StoreUnavailableError: "start the server, or correct --uri or MGM_URI; a file such as mgm.db needs no server",
    PrivilegeError: "have the privilege granted to a role of the user's; docs/server.md lists what each role needs",
    AuthenticationError: "pass --token user:password, or set MGM_TOKEN",
    StoreLockedError: "end the other program that has the file open, then mgm up: all programs share it",
}
"""Error -> remedy, where the message does not name one for the command line."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check and its result.

    Attributes:
        name: of the check.
        ok: whether it passed.
        message: the result, in one line.
        remedy: what to do; empty if nothing.
    """

    name: str
    ok: bool
    message: str
    remedy: str = ""


def examine(
    config: MilvusConfig, *, device: str = "auto", recall: bool = False, repair: bool = False
) -> Iterator[Check]:
    """Run all checks, one after the other; nothing is created.

    Args:
        config: the collection; without a name the default schema's.
        device: where the network runs.
        recall: also measure the recall of the indexes; reads all rows twice.
        repair: delete the codes of regions whose image is gone, and rebuild indexes for the expected row count;
            otherwise nothing is changed.
    """
    yield _attempt("python", _python)
    for package in RANGES:
        if package != "milvus-lite" or config.is_file:
            yield _attempt(package, partial(_package, package))
    yield _attempt("torch and torchvision", _torch_pair, "install the two together: pip install -U torch torchvision")
    yield _attempt("image formats", _formats, "pip install --force-reinstall Pillow, whose wheels have both")
    there = _attempt("device", lambda: _device(device), "use --device auto or cpu")
    yield there
    runs_on = device if there.ok else "auto"  # one fault, one line: the network is tried where it can run
    yield _attempt("encoder", lambda: _encoder(runs_on), "pip install --force-reinstall mg-milvus")
    yield from _milvus(config, runs_on, recall=recall, repair=repair)


def _attempt(name: str, check: Callable[[], Check], remedy: str = "see the message") -> Check:
    try:
        return check()
    except MgMilvusError as exc:
        return Check(name, False, _line(exc), REMEDIES.get(type(exc), remedy))
    except Exception as exc:  # noqa: BLE001 - a broken installation can raise anything
        return Check(name, False, f"{type(exc).__name__}: {_line(exc)}", remedy)


def _line(exc: Exception) -> str:
    return one_line(str(exc), 1000)


def _python() -> Check:
    return Check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _package(package: str) -> Check:
    first, end = RANGES[package]
    remedy = f'pip install "{package}>={_dotted(first)},<{_dotted(end)}"'
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        if package == "milvus-lite" and platform.system() not in LITE_SYSTEMS:
            return Check(
                package,
                False,
                f"Milvus Lite does not run on {platform.system()}",
                "use a server: --uri http://localhost:19530",
            )
        return Check(package, False, "not installed", remedy)
    if not first <= _numbers(version) < end:
        return Check(package, False, f"{version}, expected {_dotted(first)} or newer, before {_dotted(end)}", remedy)
    return Check(package, True, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _torch_pair() -> Check:
    from mg_milvus.encoder.torch_runtime import torch_versions

    torch, torchvision = torch_versions()
    return Check("torch and torchvision", True, f"{torch} and {torchvision} fit together")


def _formats() -> Check:
    from PIL import features

    missing = [name for name in ("jpg", "webp", "zlib") if not features.check(name)]
    if missing:
        raise RuntimeError(f"Pillow was built without {', '.join(missing)}")
    return Check("image formats", True, "JPEG, PNG and WebP can be read")


def _device(device: str) -> Check:
    from mg_milvus.encoder.torch_runtime import has_bfloat16, resolve_device

    resolved = resolve_device(device)
    precision = "bfloat16" if has_bfloat16(resolved) else "float32 (no fast bfloat16 here)"
    return Check("device", True, f"{device} is {resolved}, {precision}")


def _encoder(device: str) -> Check:
    from PIL import Image

    from mg_milvus.encoder.load import load_encoder

    encoder = load_encoder(device=device)
    codes = encoder.encode([encoder.prepare(Image.linear_gradient("L").convert("RGB"))])
    lengths = {name: 8 * code.shape[1] for name, code in codes.items()}
    if lengths != dict(encoder.bits):
        raise RuntimeError(f"codes of {lengths} bits, expected {dict(encoder.bits)}")
    does = f"encodes a test image in {encoder.runtime}"
    return Check("encoder", True, f"{encoder.backbone}, {encoder.fingerprint}, {does}")


def _milvus(config: MilvusConfig, device: str, *, recall: bool, repair: bool) -> Iterator[Check]:
    from mg_milvus.store.milvus import open_store

    uri = config.uri
    if config.is_file and not Path(uri).exists():
        yield Check("milvus", True, f"no index here yet ({uri}): mgm ingest makes it")
        return
    opened: list[Store] = []

    def connect() -> Check:
        opened.append(open_store(config))
        return Check("milvus", True, f"{opened[0].server()} at {uri}")

    yield _attempt("milvus", connect, "correct --uri or MGM_URI; it is a file such as mgm.db, or http://host:19530")
    if not opened:
        return
    try:
        yield _attempt(
            "collection", lambda: _collection(opened[0], device), "name another --collection, or ingest into a new one"
        )
        yield from _search(opened[0])
        yield from _regions(opened[0], repair=repair)
        yield from _indexes(opened[0], repair=repair)
        if recall:
            yield _attempt("recall", lambda: _recall(opened[0]))
    finally:
        opened[0].close()


def _collection(store: Store, device: str) -> Check:
    from mg_milvus.encoder.load import load_encoder

    description = store.describe()
    if description is None:
        others = store.collections()
        there = f"there are {', '.join(others)}" if others else "there is none"
        return Check("collection", True, f"no collection '{store.collection}' yet: mgm ingest makes it ({there})")
    stored = store.get_encoder(description.fingerprint)
    rows = f"'{store.collection}', {store.count():,} rows"
    if stored is None:
        return Check(
            "collection",
            False,
            f"{rows}, but its encoder {description.fingerprint} is not stored beside it",
            "pass the encoder's file with --encoder, or ingest into a new collection",
        )
    fingerprint = load_encoder(stored, device=device).fingerprint
    if fingerprint != description.fingerprint:
        return Check(
            "collection",
            False,
            f"{rows}, filled by encoder {description.fingerprint}, but {fingerprint} is stored beside it",
            "ingest into a new collection",
        )
    return Check("collection", True, f"{rows}, encoder {fingerprint} is stored with it")


def _search(store: Store) -> Iterator[Check]:
    """Check that the fields of codes can be searched by this user; no check without a collection."""
    try:
        description = store.describe()
    except MgMilvusError:
        return  # the check before this one reports it
    if description is None:
        return
    schema = description.schema

    def search() -> Check:
        for name, bits in schema.bits.items():
            store.nearest(name, np.zeros((1, bits // 8), np.uint8), 1)
        if schema.regions is not None:
            store.regions.nearest(0, np.zeros((1, schema.regions.bits // 8), np.uint8), 1)
        return Check("search", True, f"{', '.join([*schema.bits, *([REGIONS] if schema.regions else [])])} respond")

    yield _attempt("search", search)


def _regions(store: Store, *, repair: bool) -> Iterator[Check]:
    """Check that every image has its regions and every region its image; no check without regions in the schema."""
    try:
        description = store.describe()
    except MgMilvusError:
        return  # the check before this one reports it
    if description is None or description.schema.regions is None:
        return
    remedy = "mgm ingest FOLDER encodes what is missing"
    yield _attempt("regions", lambda: _in_step(store, description.schema, repair=repair), remedy)


def _in_step(store: Store, schema: Schema, *, repair: bool) -> Check:
    from mg_milvus.ingest.run import delete_orphans, find_out_of_step

    out_of_step = find_out_of_step(store, schema, thorough=True)
    if repair:
        delete_orphans(store, out_of_step)
    orphans, incomplete = len(out_of_step.orphans), len(out_of_step.incomplete)
    removed = f"the regions of {orphans:,} images that are gone were removed" if repair and orphans else ""
    if incomplete or (orphans and not repair):
        return Check(
            "regions",
            False,
            removed or f"{orphans:,} images are gone but for their regions, {incomplete:,} lack regions",
            "mgm ingest FOLDER encodes what is missing" if incomplete else "mgm doctor --repair, or the next ingest",
        )
    return Check("regions", True, removed or f"{store.regions.count():,} codes of regions, in step with the images")


def _indexes(store: Store, *, repair: bool) -> Iterator[Check]:
    """Check the number of clusters of each BIN_IVF_FLAT index against its rows; no check without such an index."""
    from mg_milvus.store.base import fits, nlist_for

    try:
        indexes = [] if store.describe() is None else store.indexes.lists()
    except MgMilvusError:
        return  # a check before this one reports it
    for index in indexes:
        what = f"'{index.collection}', nlist {index.nlist}"
        expected = nlist_for(index.rows)
        if fits(index.nlist, index.rows):
            rows = f"segments of {index.rows:,} rows" if index.rows else "no segment is large enough for an index yet"
            yield Check("index", True, f"{what}, {rows}: fits")
        elif repair:

            def rebuild(collection: str = index.collection, nlist: int = expected) -> Check:
                store.indexes.rebuild(collection, nlist)
                return Check(
                    "index", True, f"'{collection}' gets its index again with nlist {nlist}; the server builds"
                )

            yield _attempt("index", rebuild)
        else:
            yield Check(
                "index",
                False,
                f"{what}, but segments of {index.rows:,} rows need about {expected} (4 times the root)",
                "mgm doctor --repair builds it again; nprobe keeps its share, and queries fail for some seconds",
            )


def _recall(store: Store) -> Check:
    description = store.describe()
    if description is None:
        return Check("recall", True, f"no collection '{store.collection}' yet")
    storage = description.schema.storage
    recalls = index_recall(store, tuple(description.schema.bits))
    values = ", ".join(f"{name} {value:.3f}" for name, value in recalls.items()) or "no rows yet"
    remedy = (
        f"a higher nprobe than {storage.nprobe}: mgm export, then mgm load --schema with it, into another --collection"
    )
    ok = min(recalls.values(), default=1.0) >= ENOUGH_RECALL
    return Check("recall", ok, f"of the 10 nearest, the index finds: {values}", "" if ok else remedy)


def index_recall(store: Store, granularities: tuple[str, ...], *, k: int = 10, queries: int = 100) -> dict[str, float]:
    """Recall at ``k`` of each granularity's index, with a random sample of the rows as queries.

    A candidate is correct if it is no farther away than the k-th nearest row, so ties do not count as misses. All rows
    are read twice; memory does not grow with them.

    Args:
        store: has the collection.
        granularities: names of the fields.
        k: nearest rows per query; fewer if there are fewer rows.
        queries: size of the sample, at most.

    Returns:
        Granularity -> share of correct candidates, 0 to 1; empty without rows.
    """
    sample = _random_sample(store, granularities, queries)
    if not sample:
        return {}
    codes = {name: _codes(sample, name) for name in granularities}
    nearest: dict[str, NDArray[np.int32]] = {name: np.empty((len(sample), 0), np.int32) for name in granularities}
    for rows in store.scan(granularities=granularities):
        for name in granularities:
            seen = np.hstack([nearest[name], hamming(codes[name], _codes(rows, name))])
            nearest[name] = np.sort(seen, axis=1)[:, :k]
    recalls = {}
    for name in granularities:
        candidates = store.nearest(name, codes[name], nearest[name].shape[1])
        pairs = zip(candidates, nearest[name][:, -1], strict=True)
        recalls[name] = sum(int((own.distances <= far).sum()) for own, far in pairs) / nearest[name].size
    return recalls


def _random_sample(store: Store, granularities: tuple[str, ...], size: int) -> list[Row]:
    """A uniform random sample of the rows (Vitter 1985)."""
    chosen: list[Row] = []
    randomness = random.Random(_SEED)  # noqa: S311  (reproducible, not secret)
    count = 0
    for rows in store.scan(granularities=granularities):
        for row in rows:
            count += 1
            if len(chosen) < size:
                chosen.append(row)
            elif (place := randomness.randrange(count)) < size:
                chosen[place] = row
    return chosen


def _codes(rows: list[Row], name: str) -> Codes:
    return np.stack([np.frombuffer(row.codes[name], np.uint8) for row in rows])
