"""What must hold after every fault, read and worked out apart from the code under test: through pymilvus alone, with
files decoded by Pillow and encoded one by one, and compared as sets."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from pymilvus import MilvusClient

from mg_milvus.encoder.base import Encoder
from mg_milvus.encoder.load import load_encoder
from tests.faults.harness import engines, no_engine_left
from tests.servers import lite_server
from tests.waiting import wait_until

REGIONS, REGION_BYTES = 4, 8
"""As the schemas of these tests have them."""


@dataclass(frozen=True)
class Contents:
    """All that is in an index: rows of images and of regions, and the encoder that filled it."""

    images: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    encoder: Encoder | None

    @property
    def paths(self) -> Counter[str]:
        """How often each path has a row."""
        return Counter(row["path"] for row in self.images)


@contextmanager
def served(file: Path) -> Iterator[str]:
    """The URI of a server of a Milvus Lite file whose own engine ends first."""
    wait_until(lambda: not engines(file), f"the engine of {file.name} ends with its mgm")
    with lite_server(file) as server:
        yield server.uri


def contents(uri: str, collection: str = "images") -> Contents:
    """Read everything from a server; what there is not is empty."""
    client = MilvusClient(uri, dedicated=True)
    try:
        there = set(client.list_collections())
        if collection not in there:
            return Contents([], [], None)
        images = _rows(client, collection)
        _check_found(client, collection, images)
        regions = _rows(client, f"{collection}_regions") if f"{collection}_regions" in there else []
        described = json.loads(client.describe_collection(collection)["fields"][0]["description"])
        return Contents(images, regions, _kept(client, collection, described["fingerprint"]))
    finally:
        client.close()


def check_acknowledged(uri: str, run_acknowledged: int) -> None:
    """Between a fault and the next run: what was acknowledged is there, whole, with its regions before itself."""
    found = contents(uri)
    assert len(found.images) >= run_acknowledged
    assert not [path for path, count in found.paths.items() if count > 1]
    _check_regions(found, orphans=True)


def check_whole(uri: str, *folders: Path, regions: bool = True, collection: str = "images") -> None:
    """Every file has one row that tells of it as it is now, with the code of a fresh encoding, and so have its regions.

    Args:
        uri: of a server.
        folders: all images are in them, as ``*.png``, and there is nothing else in the index.
        regions: whether the schema has some.
        collection: its own name.
    """
    found = contents(uri, collection)
    files = {str(file): file for folder in folders for file in folder.rglob("*.png")}
    assert found.paths == Counter(list(files)), set(files) ^ set(found.paths)
    assert found.encoder is not None
    for row in found.images:
        file = files[row["path"]]
        data, status = file.read_bytes(), file.stat()
        codes = _fresh(found.encoder.fingerprint, data, found.encoder)
        assert row["id"] == hashlib.blake2b(row["path"].encode(), digest_size=16).hexdigest()
        assert (row["size"], row["mtime_ns"]) == (status.st_size, status.st_mtime_ns), file
        assert row["content_hash"] == hashlib.blake2b(data, digest_size=16).hexdigest(), file
        assert {name: row[name] for name in codes if name != "regions"} == {
            name: code for name, code in codes.items() if name != "regions"
        }, file
    if regions:
        _check_regions(found, orphans=False)
        codes_of = {row["id"]: _fresh(found.encoder.fingerprint, files[row["path"]].read_bytes(), found.encoder)
                    for row in found.images}  # fmt: skip
        for region in found.regions:
            image, _, number = region["id"].partition(":")
            start = int(number) * REGION_BYTES
            assert region["code"] == codes_of[image]["regions"][start : start + REGION_BYTES], region["id"]
    else:
        assert found.regions == []


def check_file(file: Path, *folders: Path) -> None:
    """``check_whole`` of a Milvus Lite file that is closed; nothing but it and its lock file is left beside it."""
    with no_engine_left(file), served(file) as uri:
        check_whole(uri, *folders)
    assert {entry.name for entry in file.parent.iterdir()} == {file.name, f".{file.name}.lock"}


def _check_regions(found: Contents, *, orphans: bool) -> None:
    ids = Counter(row["id"] for row in found.regions)
    wanted = {f"{row['id']}:{number}" for row in found.images for number in range(REGIONS)}
    assert max(ids.values(), default=1) == 1
    assert wanted <= ids.keys() if orphans else wanted == ids.keys()


def _rows(client: MilvusClient, name: str) -> list[dict[str, Any]]:
    fields = [field["name"] for field in client.describe_collection(name)["fields"]]
    vectors = [field["name"] for field in client.describe_collection(name)["fields"] if "dim" in field["params"]]
    if set(vectors) - set(client.list_indexes(name)):
        return []  # made by a client that was killed before it could write
    client.load_collection(name)
    rows = client.query(name, filter="", limit=16_384, output_fields=fields, consistency_level="Strong")
    assert client.query(name, output_fields=["count(*)"])[0]["count(*)"] == len(rows)
    return [{key: b"".join(value) if key in vectors else value for key, value in row.items()} for row in rows]


def _check_found(client: MilvusClient, name: str, rows: list[dict[str, Any]]) -> None:
    """What the table holds, a search finds: by its own code, at distance 0."""
    if not rows:
        return
    for hits, row in zip(
        client.search(name, [row["fine"] for row in rows], limit=5, anns_field="fine"), rows, strict=True
    ):
        assert (0, row["id"]) in [(hit["distance"], hit["id"]) for hit in hits]


def _kept(client: MilvusClient, collection: str, fingerprint: str) -> Encoder:
    client.load_collection(f"{collection}_encoder")
    rows = client.query(
        f"{collection}_encoder", filter=f'id like "{fingerprint}:%"', output_fields=["id", "data"], limit=16_384
    )
    parts = {int(row["id"].partition(":")[2]): row["data"]["base64"] for row in rows}
    return _encoder(b"".join(base64.b64decode(parts[number]) for number in range(len(parts))))


@cache
def _encoder(data: bytes) -> Encoder:
    return load_encoder(data, device="cpu")


_known: dict[tuple[str, bytes], dict[str, bytes]] = {}


def _fresh(fingerprint: str, data: bytes, encoder: Encoder) -> dict[str, bytes]:
    """The codes of an image, encoded by itself."""
    key = fingerprint, data
    if key not in _known:
        with Image.open(BytesIO(data)) as image:
            codes = encoder.encode([encoder.prepare(image.convert("RGB"))])
        _known[key] = {name: code[0].tobytes() for name, code in codes.items()}
    return _known[key]
