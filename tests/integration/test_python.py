"""The library explains itself: options in ``help``, rows without a query image, and the recipe of docs/python.md."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mg_milvus import QueryOptions
from mg_milvus.errors import CollectionNotFoundError, FilterError, QueryError
from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Row
from tests.test_readme import blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECIPES = Path(__file__).parents[2] / "docs" / "python.md"
KINDS = ["boot", "", "shoe", "shoe", "boot", "shoe"]


@pytest.fixture(scope="module")
def listed() -> Iterator[ImageIndex]:
    """Six images: width 5, 4, 3, 2, 1, 0 + 10, a kind each except the second, and a price each except the last two."""
    schema = Schema.from_yaml("version: 1\nfields: [{name: kind, type: string}, {name: price, type: float}]")
    codes = {name: bytes(bits // 8) for name, bits in schema.bits.items()}
    with ImageIndex.open("memory:", schema=schema) as opened:
        opened.session.store.create(Description(schema, "0123456789abcdef"))
        opened.session.store.upsert([
            Row(image_id(f"/{n}.jpg"), f"/{n}.jpg", 7, n, 15 - n, 1, "", codes,
                {"kind": kind} | ({"price": n / 2} if n < 4 else {}))
            for n, kind in enumerate(KINDS)
        ])  # fmt: skip
        yield opened


@pytest.mark.parametrize(
    "method",
    [
        ImageIndex.query,
        ImageIndex.query_many,
        ImageIndex.query_together,
        ImageIndex.query_codes,
        ImageIndex.like,
        ImageIndex.explain,
        ImageIndex.search,
    ],
)
def test_help_shows_every_option_of_a_query(method: Callable[..., Any]) -> None:
    shown = inspect.signature(method).parameters
    assert set(QueryOptions.__annotations__) <= set(shown)
    assert all(shown[name].kind == inspect.Parameter.KEYWORD_ONLY for name in QueryOptions.__annotations__)
    assert (shown["k"].default, shown["verify"].default, shown["weights"].default) == (10, False, None)
    assert "k: results returned (10)." in inspect.getdoc(method)  # type: ignore[operator]
    assert "**options" not in inspect.getdoc(method)  # type: ignore[operator]


def test_an_unknown_option_is_refused_with_the_nearest(listed: ImageIndex) -> None:
    with pytest.raises(QueryError, match=r"unknown option .?'profle'.*did you mean 'profile'"):
        listed.query("x.jpg", profle="instance")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"order_by": "path"}, "012345"),
        ({"order_by": "-path"}, "543210"),
        ({"order_by": "width"}, "543210"),
        ({"order_by": "width", "limit": 2, "offset": 1}, "43"),
        ({"order_by": "-width", "limit": 2, "offset": 5}, "5"),
        ({"order_by": "path", "offset": 6}, ""),
        ({"order_by": "price", "limit": 4}, "0123"),  # those without a price come last
        ({"order_by": "-price", "limit": 4}, "3210"),
        ({"order_by": "path", "filter": {"kind": "boot"}}, "04"),
        ({"order_by": "-width", "filter": "kind is not null and width < 15"}, "2345"),
    ],
)
def test_images_are_listed_in_order(listed: ImageIndex, options: dict[str, Any], expected: str) -> None:
    assert "".join(row.path[1] for row in listed.images(**options)) == expected


def test_pages_of_a_list_hold_every_image_once(listed: ImageIndex) -> None:
    for order in ("id", "size", "kind", "-kind", "-price"):  # with equal and missing values
        pages = [row.id for start in range(0, 6, 2) for row in listed.images(order_by=order, limit=2, offset=start)]
        assert len(pages) == len(set(pages)) == 6
    assert [row.id for row in listed.images()] == sorted(image_id(f"/{n}.jpg") for n in range(6))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"order_by": "widht"}, r"unknown field 'widht' \(did you mean 'width'\?\), expected id, path"),
        ({"order_by": None}, "unknown field"),
        ({"limit": 0}, "limit is 0, expected a whole number from 1 on"),
        ({"limit": 2.5}, "limit is 2.5, expected a whole number"),
        ({"offset": -1}, "offset is -1, expected a whole number from 0 on"),
    ],
)
def test_a_list_that_cannot_be_is_refused(listed: ImageIndex, options: dict[str, Any], says: str) -> None:
    with pytest.raises(QueryError, match=says):
        listed.images(**options)


def test_facets_count_the_rows_of_each_value(listed: ImageIndex) -> None:
    assert list(listed.facets("kind").items()) == [("shoe", 3), ("boot", 2), (None, 1)]
    assert listed.facets("kind", {"width": (">", 12)}) == {"boot": 1, None: 1, "shoe": 1}
    assert listed.facets("price") == {0.0: 1, 0.5: 1, 1.0: 1, 1.5: 1, None: 2}
    assert listed.facets("size") == {7: 6}
    with pytest.raises(QueryError, match=r"unknown field 'knd' \(did you mean 'kind'\?\)"):
        listed.facets("knd")
    with pytest.raises(FilterError):
        listed.facets("kind", "colour == 1")


def test_warming_up_loads_the_encoder(labelled_index: ImageIndex) -> None:
    labelled_index.warm_up()
    assert labelled_index.session._encoder is not None
    with ImageIndex.open("memory:") as empty, pytest.raises(CollectionNotFoundError):
        empty.warm_up()


def test_the_service_of_the_recipe_answers(
    labelled_index: ImageIndex, labelled_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="the recipe is for FastAPI")
    from fastapi.testclient import TestClient

    (recipe,) = (block.text for block in blocks(RECIPES.read_text(encoding="utf-8")) if "FastAPI(" in block.text)
    monkeypatch.setattr(ImageIndex, "open", lambda *_: labelled_index)
    monkeypatch.setattr(labelled_index, "close", lambda: None)  # other tests use it, too
    made: dict[str, Any] = {"__name__": "service"}
    exec(compile(recipe, str(RECIPES), "exec"), made)
    image = sorted(labelled_photos.rglob("*.*"))[0]
    with TestClient(made["app"]) as client:
        answer = client.post("/similar", params={"k": 3}, content=image.read_bytes())
        assert [hit["path"] for hit in answer.json()] == [hit.path for hit in labelled_index.query(image, k=3)]
        refused = client.post("/similar", content=b"no image")
        assert refused.status_code == 400
        assert "image" in refused.json()["detail"]
