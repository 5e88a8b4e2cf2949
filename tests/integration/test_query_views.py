"""Queries with views: the middle and the corners of the query image, on the granularity ``fine``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from mg_milvus import QueryTerm
from mg_milvus.errors import QueryError
from tests.cli.test_log import run
from tests.integration.test_explanation import all_codes
from tests.real_codes import distance, real_code

if TYPE_CHECKING:
    from pathlib import Path

    from mg_milvus.index import ImageIndex


@pytest.fixture(scope="module")
def page(labelled_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A photograph in the lower right corner of a page, 70 % of its width and height; and the photograph."""
    photo = sorted((labelled_photos / "blocks").iterdir())[3]
    made = Image.new("RGB", (200, 100), "white")
    with Image.open(photo) as image:
        made.paste(image.convert("RGB").resize((140, 70)), (60, 30))
    file = tmp_path_factory.mktemp("page") / "page.png"
    made.save(file)
    return file, photo


def test_the_distance_is_that_of_the_nearest_view(
    labelled_index: ImageIndex, page: tuple[Path, Path], tmp_path: Path
) -> None:
    """The page is 200 x 100: the views are 140 x 70, the middle one from (30, 15), the last one the photograph."""
    places = [(30, 15), (0, 0), (60, 0), (0, 30), (60, 30)]
    views = [page[0]]
    with Image.open(page[0]) as image:
        for x, y in places:
            image.crop((x, y, x + 140, y + 70)).save(tmp_path / f"{x}-{y}.png")
            views.append(tmp_path / f"{x}-{y}.png")
    ids, bits = all_codes(labelled_index)
    expected: dict[str, dict[str, int]] = {}
    for name in bits:
        asked = [real_code(labelled_index, file, name) for file in (views if name == "fine" else views[:1])]
        signs = [np.array(code) > 0 for code in asked]
        differing = [min((own != row.astype(bool)).sum() for own in signs) for row in bits[name]]
        expected[name] = dict(zip(ids, map(int, differing), strict=True))
    nearest = [min(distance(real_code(labelled_index, file, "fine"), row) for file in views) for row in bits["fine"]]
    hits = labelled_index.query(page[0], k=len(ids), depth=len(ids), profile="instance")
    order = [key for _, key in sorted(zip(nearest, ids, strict=True))]
    assert [hit.id for hit in hits] == order
    for hit in hits:
        assert hit.distances == {name: of_name[hit.id] for name, of_name in expected.items()}
    # A few candidates are the first of all: those that any view retrieves.
    few = labelled_index.query(page[0], k=3, depth=3, profile="instance")[0]
    assert (few.id, few.distances) == (hits[0].id, hits[0].distances)


def test_what_is_on_a_page_is_found(labelled_index: ImageIndex, page: tuple[Path, Path]) -> None:
    file, photo = page
    size = labelled_index.info().rows

    def far(**options: object) -> int:
        hits = labelled_index.query(file, k=size, depth=size, **options)
        return next(hit.distances["fine"] for hit in hits if hit.path == str(photo))

    with Image.open(file) as image:
        cut = labelled_index.query(image.crop((60, 30, 200, 100)), k=1, profile="instance", views=False)[0]
    found = labelled_index.query(file, k=1, profile="instance")[0]
    assert (found.path, found.distances["fine"]) == (str(photo), cut.distances["fine"])
    assert far(profile="instance") == far(weights={"fine": 1}, views=True) == cut.distances["fine"]
    assert far(profile="instance", views=False) == far(weights={"fine": 1}) > cut.distances["fine"]


def test_from_the_command_line(
    labelled_index: ImageIndex, page: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mg_milvus.cli.settings.open_index", lambda *_, **__: nullcontext(labelled_index))
    ways = {
        ("--profile", "instance"): True,
        ("--profile", "instance", "--no-views"): False,
        ("--weights", "fine=1"): False,
        ("--weights", "fine=1", "--views"): True,
    }
    for options, views in ways.items():
        done = run("query", page[0], "-k", "1", "--json", *options)
        hit = labelled_index.query(page[0], k=1, weights={"fine": 1}, views=views)[0]
        assert json.loads(done.stdout)["distances"] == hit.distances


@pytest.mark.parametrize("options", [{"views": 1}, {"views": "yes"}])
def test_wrong_options(labelled_index: ImageIndex, page: tuple[Path, Path], options: dict) -> None:
    with pytest.raises(QueryError, match=r"views is .*, expected True or False"):
        labelled_index.query(page[0], **options)


def test_views_need_the_image(labelled_index: ImageIndex, page: tuple[Path, Path]) -> None:
    for ask in (
        lambda: labelled_index.like(page[1], views=True),
        lambda: labelled_index.explain(like=page[1], views=True),
        lambda: labelled_index.query_codes(labelled_index.codes(page[1]), views=True),
    ):
        with pytest.raises(QueryError, match="views are parts of the image itself"):
            ask()
    with pytest.raises(QueryError, match="several images are searched with as they are"):
        labelled_index.query_together([QueryTerm(page[0]), QueryTerm(page[1])], views=True)
    assert labelled_index.like(page[1], k=3, profile="instance")[0].distances["fine"] >= 0


def test_a_tiny_image_has_views(labelled_index: ImageIndex) -> None:
    """One pixel cannot be cut."""
    hits = labelled_index.query(Image.fromarray(np.full((1, 1, 3), 90, np.uint8)), k=2, profile="instance")
    assert len(hits) == 2
