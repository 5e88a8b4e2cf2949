"""Random samples and choices read few rows, however many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Neighbours, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = 20_000


@pytest.fixture(scope="module")
def index() -> Iterator[ImageIndex]:
    schema = Schema.from_yaml("version: 1\nfields: [{name: kind, type: string}]")
    codes = {name: bytes(bits // 8) for name, bits in schema.bits.items()}
    with ImageIndex.open("memory:", schema=schema) as opened:
        store = opened.session.store
        store.create(Description(schema, "0123456789abcdef"))
        store.upsert([
            Row(image_id(f"/{n}.jpg"), f"/{n}.jpg", n, n, n, 1, "", codes, {"kind": f"{n % 7}"}) for n in range(ROWS)
        ])  # fmt: skip
        yield opened


@pytest.fixture
def read(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that each call of the store gave."""
    store, counted = index.session.store, []
    nearest, fetch = store.nearest, store.fetch

    def finding(*arguments: Any) -> list[Neighbours]:
        found = nearest(*arguments)
        counted.append(sum(len(own.ids) for own in found))
        return found

    def fetching(*arguments: Any) -> dict[str, Row]:
        rows = fetch(*arguments)
        counted.append(len(rows))
        return rows

    monkeypatch.setattr(store, "nearest", finding)
    monkeypatch.setattr(store, "fetch", fetching)
    monkeypatch.delattr(type(store), "scan")
    return counted


def test_a_sample_reads_a_few_times_what_it_gives(index: ImageIndex, read: list[int]) -> None:
    seen = [row.width for _ in range(50) for row in index.sample(24)]
    assert len(seen) == 50 * 24
    assert sum(read) < 50 * 24 * 8
    assert len(set(seen)) > 1000  # not the same ones again and again
    thirds = [sum(3 * width // ROWS == third for width in seen) for third in range(3)]
    assert min(thirds) > 0.8 * len(seen) / 3


@pytest.mark.parametrize(("where", "there"), [("width < 300", 24), ("width < 5", 5), ("width < 0", 0)])
def test_a_filter_that_lets_few_rows_through(index: ImageIndex, read: list[int], where: str, there: int) -> None:
    rows = index.sample(24, where)
    assert len({row.id for row in rows}) == len(rows) == there
    assert all(row.width < int(where.split()[-1]) for row in rows)
    assert sum(read) <= 300 * 3  # of the rows that match


def test_choices_read_a_sample_of_the_rows(index: ImageIndex, read: list[int]) -> None:
    assert index.choices() == {"kind": [str(number) for number in range(7)]}
    assert 1000 <= sum(read) < 8000
