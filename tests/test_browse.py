"""A look around in a collection reads few of its rows, however many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mg_milvus import ImageIndex, Schema
from mg_milvus.browse import Browser
from mg_milvus.images.discover import picture_id
from mg_milvus.store import Description, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = 20_000


@pytest.fixture(scope="module")
def index() -> Iterator[ImageIndex]:
    schema = Schema.from_yaml("version: 1\nfields: [{name: kind, type: string}]")
    codes = {name: bytes(bits // 8) for name, bits in schema.bits.items()}
    with ImageIndex.open("memory:", schema=schema) as opened:
        store = opened.connection.store
        store.create(Description(schema, "0123456789abcdef"))
        store.upsert([
            Row(picture_id(f"/{n}.jpg"), f"/{n}.jpg", n, n, n, 1, "", codes, {"kind": f"{n % 7}"}) for n in range(ROWS)
        ])  # fmt: skip
        yield opened


@pytest.fixture
def read(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that each scan gave."""
    store, counted = index.connection.store, []
    scan = store.scan

    def counting(*arguments: object, **options: object) -> Iterator[list[Row]]:
        counted.append(0)
        for rows in scan(*arguments, **options):  # type: ignore[arg-type]
            counted[-1] += len(rows)
            yield rows

    monkeypatch.setattr(store, "scan", counting)
    return counted


def test_a_sample_reads_a_few_times_what_it_gives(index: ImageIndex, read: list[int]) -> None:
    browser = Browser(index.connection)
    seen = [row.width for _ in range(50) for row in browser.sample(24)]
    assert len(seen) == 50 * 24
    assert sum(read) < 50 * 24 * 8
    assert len(set(seen)) > 1000  # not the same ones again and again
    thirds = [sum(3 * width // ROWS == third for width in seen) for third in range(3)]
    assert min(thirds) > 0.8 * len(seen) / 3


@pytest.mark.parametrize(("where", "there"), [("width < 300", 24), ("width < 5", 5), ("width < 0", 0)])
def test_a_filter_that_lets_few_rows_through(index: ImageIndex, read: list[int], where: str, there: int) -> None:
    rows = Browser(index.connection).sample(24, where)
    assert len({row.id for row in rows}) == len(rows) == there
    assert all(row.width < int(where.split()[-1]) for row in rows)
    assert sum(read) <= 300 * 2  # of the rows that match


def test_what_columns_hold_is_seen_in_some_of_the_rows(index: ImageIndex, read: list[int]) -> None:
    assert Browser(index.connection).values() == {"kind": [str(number) for number in range(7)]}
    assert 1000 <= sum(read) < 6000
