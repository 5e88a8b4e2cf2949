"""Users with the rights that docs/server.md lists, and what each of them does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.schema.models import FusionSettings, Granularity, RegionSettings, Schema
from mg_milvus.store.base import Description, HybridSearch, Row
from tests.server.strict_rights import object_type

if TYPE_CHECKING:
    from pymilvus import MilvusClient

    from mg_milvus.store.milvus import MilvusStore
    from tests.server.strict_rights import Grant

PAGE = Path(__file__).parents[2] / "docs" / "server.md"
ROLES = ("reader", "writer", "owner")
REGIONS = RegionSettings.model_validate({"bits": 64, "scales": [{"size": 0.5, "grid": 1}]})
SCHEMA = Schema(granularities=(Granularity(name="coarse", bits=16), Granularity(name="fine", bits=64)), regions=REGIONS)
PRINT = "0123456789abcdef"


def documented() -> dict[str, set[Grant]]:
    """Role -> the grants in the table of the page; each role has those of the roles before it."""
    table = re.findall(r"^\| (`.+?`) \|(.*)\|(.*)\|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    rows = [(name.strip("`"), cells) for name, *cells in table if re.fullmatch(r"`(photos\w*|\*)`", name)]
    grants: dict[str, set[Grant]] = {}
    for number, role in enumerate(ROLES):
        own = {(word, name) for name, cells in rows for word in re.findall(r"\w+", cells[number])}
        grants[role] = own.union(*(grants[earlier] for earlier in ROLES[:number]))
    return grants


def add_users(admin: MilvusClient, grants: dict[str, set[Grant]], *, second: bool) -> None:
    """A user for each role, called as it, with the password "Passw0rd!"; ``second``: with the grants of 2.5."""
    for role, own in grants.items():
        admin.create_user(role, "Passw0rd!")
        admin.create_role(role)
        admin.grant_role(role, role)
        for privilege, collection in sorted(own):
            if second:
                admin.grant_privilege_v2(role, privilege, collection)
            else:
                admin.grant_privilege(role, object_type(privilege), privilege, collection)


def rows(schema: Schema) -> list[Row]:
    return [
        Row(
            f"{n:032x}", f"/a/{n}.jpg", 9, 9, 4, 3, "0" * 32,
            {name: n.to_bytes(bits // 8) for name, bits in schema.bits.items()}, {}, bytes(8),
        )
        for n in range(3)
    ]  # fmt: skip


def own(store: MilvusStore, schema: Schema) -> None:
    """What an owner does."""
    store.drop()
    store.create(Description(schema, PRINT))
    store.put_encoder(PRINT, b"an encoder")
    store.put_encoder("f" * 16, b"another")
    store.drop_encoder("f" * 16)
    store.retune(dict.fromkeys(schema.bits, 0.5), FusionSettings())
    store.indexes.rebuild(store.collection, 8)
    store.indexes.rebuild(f"{store.collection}_regions", 8)


def do(role: str, store: MilvusStore, schema: Schema) -> None:
    """What a role does, and what those before it do; the collection has the same rows afterwards."""
    for work in (own, write, read)[2 - ROLES.index(role) :]:
        work(store, schema)


def write(store: MilvusStore, schema: Schema) -> None:
    """What a writer does."""
    first, *others = rows(schema)
    store.upsert([first, *others])
    store.delete([first.id])
    store.upsert([first])
    store.put_statistics(b"some")


def read(store: MilvusStore, schema: Schema) -> None:
    """What a reader does."""
    description = store.describe()
    assert description is not None
    assert store.get_encoder(description.fingerprint) == b"an encoder"
    assert store.get_statistics() in {None, b"some"}
    assert store.collection in store.collections()
    assert store.count() == 3
    names = list(schema.bits)
    zeros = {name: np.zeros((1, bits // 8), np.uint8) for name, bits in schema.bits.items()}
    for name in names:
        assert store.nearest(name, zeros[name], 2, known={})[0].distances.tolist() == [0, 1]
    ids = [row.id for row in rows(schema)]
    if len(names) > 1:
        search = HybridSearch(dict.fromkeys(names, 1.0), k=1, depth=3, rrf_k=10)
        assert store.hybrid(zeros, search)[0][0][0] == ids[0]
    assert store.fetch(ids, names) == {row.id: replace(row, region_codes=b"") for row in rows(schema)}
    assert {row.id for some in store.scan() for row in some} == set(ids)
    assert store.regions.count() == 3
    assert sorted(region for some in store.regions.scan() for region in some) == [f"{i}:0" for i in ids]
    assert store.regions.nearest(0, np.zeros((1, 8), np.uint8), 3)[0].distances.tolist() == [0, 0, 0]
    assert store.regions.codes(ids) == {i: bytes(8) for i in ids}
    store.indexes.lists()
