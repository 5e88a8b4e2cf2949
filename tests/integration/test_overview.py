"""The overview of a collection: planted clusters, their names, what they limit, and what is kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mg_milvus.errors import QueryError, StoreError
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.schema.tags import encode_tag, vocabulary
from mg_milvus.search.overview import clusters_page
from mg_milvus.store.base import Description, Row
from tests.in_process import mgm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = Schema.from_yaml(
    "version: 1\ngranularities: [{name: coarse, bits: 64}, {name: mid, bits: 64}, {name: fine, bits: 128}]"
)
KINDS = ("beach", "forest", "town")
EACH, INNER = 24, 3
"""Images of a kind, and how many kinds of codes on ``mid`` it has."""


def planted_rows(folder: str = "/photos", each: int = EACH) -> list[Row]:
    """Three kinds on coarse, three in each on mid, all different on fine but two."""
    random = np.random.default_rng(1)
    tag = {name: number for number, name in enumerate(vocabulary().tags)}
    shows = {"beach": "seashore", "forest": "valley", "town": "palace"}
    rows = []
    for kind in KINDS:
        coarse, mids = random.random(64) < 0.5, random.random((INNER, 64)) < 0.5
        fines = random.random((each, 128)) < 0.5
        fines[1] = fines[0]
        fines[1][:3] ^= True  # 3 of 128 bits apart
        for n in range(each):
            own = {
                "coarse": coarse ^ (random.random(64) < 0.05),
                "mid": mids[0 if n < 2 else n % INNER],
                "fine": fines[n],
            }
            number = len(rows)
            rows.append(Row(
                f"{number:032x}", f"{folder}/{kind}/{n}.jpg", 10, 0, 4, 3, f"{number:032x}",
                {name: np.packbits(code).tobytes() for name, code in own.items()},
                tags=[encode_tag(tag[shows[kind]], 0.8)],
            ))  # fmt: skip
    return rows


@pytest.fixture
def index() -> Iterator[ImageIndex]:
    with ImageIndex.open("memory:", schema=SCHEMA) as opened:
        opened.session.store.create(Description(SCHEMA, "0123456789abcdef"))
        opened.session.store.upsert(planted_rows())
        yield opened


def kinds(index: ImageIndex, cluster: str) -> set[str]:
    return {row.path.split("/")[2] for row in index.page(index.clusters().ids(cluster))}


def key_of(index: ImageIndex, kind: str) -> str:
    return next(one.key for one in index.clusters().clusters if kinds(index, one.key) == {kind})


def test_kinds_lie_inside_of_each_other(index: ImageIndex) -> None:
    found = index.clusters()
    assert (found.rows, sum(one.size for one in found.clusters)) == (72, 72)
    for one in found.clusters:
        assert len(kinds(index, one.key)) == 1  # 72 images are divided by four, so that one kind is in two
        assert one.granularity == "coarse"
        assert all(image.id in found.ids(one.key) for image in one.typical)
        assert sum(part.size for part in one.parts if part.granularity == "mid") in {0, one.size}
        assert all(part.key.startswith(f"{one.key}.") for part in one.parts)
    assert len(found.clusters) == 4
    labels = {kind: {one.label for one in found.clusters if kinds(index, one.key) == {kind}} for kind in KINDS}
    assert labels == {"beach": {"seashore"}, "forest": {"valley"}, "town": {"palace"}}
    near = [
        part for one in found.clusters for inner in (one, *one.parts) for part in inner.parts
        if part.granularity == "fine"
    ]  # fmt: skip
    # A pair of the kind that is in two clusters may lie in both.
    groups = [sorted(int(own, 16) % EACH for own in found.ids(part.key)) for part in near]
    assert groups in ([[0, 1]] * 3, [[0, 1]] * 2)


def test_a_name_stays_with_its_images(index: ImageIndex) -> None:
    key = key_of(index, "beach")
    assert index.name_cluster(key, "  By the   sea ").name == "By the sea"
    assert kinds(index, "by the SEA") == {"beach"}
    # Another client, after the collection has grown and the clusters were made anew.
    index.session.store.upsert(planted_rows("/photos", 24)[:24])
    index.session.store.upsert(
        [Row("f" * 32, "/photos/beach/new.jpg", 1, 0, 4, 3, "f" * 32, dict(planted_rows()[0].codes))]
    )
    other = ImageIndex(index.session)
    assert other.clusters().rows == 73
    assert kinds(other, "By the sea") == {"beach"}
    assert kinds(ImageIndex(index.session), "By the sea") == {"beach"}
    other.clusters(refresh=True)
    assert kinds(other, "By the sea") == {"beach"}
    other.name_cluster("By the sea", "")
    with pytest.raises(QueryError, match="there is no cluster 'By the sea', expected a number or a name such as"):
        other.clusters().find("By the sea")


def test_queries_and_lists_can_be_limited_to_a_cluster(index: ImageIndex) -> None:
    key = key_of(index, "town")
    ids = set(index.clusters().ids(key))
    hits = index.like("0" * 32, k=40, cluster=key)
    assert {hit.id for hit in hits} == ids
    listing = index.listing("folder", cluster=key)
    assert set(listing.ids) == ids
    assert list(listing.sections) == [("/photos/town", 0)]
    assert index.listing("folder", "path like '%/beach/%'", key).ids == []


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("77", "x", "there is no cluster '77'"),
        ("1", "12.5", "'12.5' is no name"),
        ("1", "x" * 81, "expected at most 80 characters"),
    ],
)
def test_names_that_cannot_be(index: ImageIndex, key: str, name: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        index.name_cluster(key, name)


def test_two_clusters_do_not_have_the_same_name(index: ImageIndex) -> None:
    index.name_cluster("1", "Sea")
    with pytest.raises(QueryError, match="cluster 1 is called 'sea' already"):
        index.name_cluster("2", "sea")


def test_what_is_damaged_is_made_anew(index: ImageIndex, caplog: pytest.LogCaptureFixture) -> None:
    index.session.store.put_clusters(b"PK no archive")
    assert index.clusters().rows == 72
    assert "the clusters kept beside this collection are damaged" in caplog.text


def test_who_may_not_write_still_sees_them(
    index: ImageIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: bytes) -> None:
        raise StoreError("no right to write")

    monkeypatch.setattr(index.session.store, "put_clusters", refuse)
    assert index.clusters().rows == 72
    assert "made anew each time: no right to write" in caplog.text


def test_an_empty_collection_has_no_clusters() -> None:
    with ImageIndex.open("memory:", schema=SCHEMA) as empty:
        empty.session.store.create(Description(SCHEMA, "0123456789abcdef"))
        assert empty.clusters().clusters == ()


def test_a_page_shows_all_clusters(index: ImageIndex) -> None:
    page = clusters_page(index.clusters(), "photos")
    assert page.count('<details class="cluster">') == 4
    assert "seashore" in page


def test_the_command_prints_names_and_limits(tmp_path: Path) -> None:
    with ImageIndex.open(tmp_path / "mgm.db", schema=SCHEMA) as made:
        made.session.store.create(Description(SCHEMA, "0123456789abcdef"))
        made.session.store.upsert(planted_rows())
    done = mgm("cluster", "--json", "--html", "overview.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == 72
    assert '<details class="cluster">' in (tmp_path / "overview.html").read_text()
    first = found["clusters"][0]
    done = mgm("cluster", "--name", f"{first['key']}=Holidays", cwd=tmp_path)
    assert f"{first['key']}" in done.stdout
    assert "Holidays" in done.stdout
    done = mgm("cluster", "holidays", "--paths", cwd=tmp_path)
    paths = done.stdout.splitlines()
    assert len(paths) == first["size"]
    assert len({path.split("/")[2] for path in paths}) == 1
    done = mgm("query", "--like", paths[0], "--cluster", "Holidays", "-k", "50", "--json", cwd=tmp_path)
    assert {json.loads(line)["path"] for line in done.stdout.splitlines()} == set(paths[1:])
    assert mgm("cluster", "--paths", cwd=tmp_path).returncode == 2
    assert mgm("cluster", "--name", "beach", cwd=tmp_path).returncode == 2
