"""``verify``: what a query image is to the first hits, by their pixels, and where it lies in them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from mg_milvus.errors import ImageError, QueryError
from mg_milvus.index import ImageIndex
from mg_milvus.records import Verification
from tests.cli.test_log import run
from tests.integration.test_pages import Page
from tests.unit.test_verify import letter, moved, photo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mg_milvus.results import Hits

POSTER = (200, 60, 300, 200)
"""Where the poster hangs in the scene."""


def scene() -> Image.Image:
    """A wall of 640 x 480 pixels with a poster, photo 0 at 300 x 200, with shadows and a little soft."""
    wall = photo(7).resize((640, 480)).filter(ImageFilter.GaussianBlur(2))
    x, y, w, h = POSTER
    poster = photo(0).resize((w, h), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(0.7))
    for left in range(0, w, 100):  # shadows of a window's bars
        poster.paste(Image.eval(poster.crop((left, 0, left + 30, h)), lambda level: int(0.4 * level)), (left, 0))
    wall.paste(poster, (x, y))
    return wall


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verified") / "photos"
    made.mkdir()
    for number in range(4):
        photo(number).save(made / f"{number}.jpg", quality=92)
    scene().save(made / "scene.jpg", quality=90)
    photo(0).crop((48, 32, 432, 288)).save(made / "crop.jpg", quality=92)
    moved(photo(5)).save(made / "burst.jpg", quality=92)
    letter(1).save(made / "letter.png")
    return made


@pytest.fixture(scope="module")
def index(folder: Path) -> Iterator[ImageIndex]:
    with ImageIndex.open("memory:") as opened:
        opened.ingest(folder)
        yield opened


def verdicts(hits: Hits) -> dict[str, str]:
    return {Path(hit.path).stem: hit.verified.verdict if hit.verified else "" for hit in hits}


def box(hits: Hits, name: str) -> tuple[int, ...]:
    (hit,) = [hit for hit in hits if Path(hit.path).stem == name]
    assert hit.verified is not None
    assert hit.verified.box is not None
    return hit.verified.box


def test_the_same_image_a_crop_and_a_scene_that_shows_it(index: ImageIndex):
    data = io.BytesIO()
    photo(0).resize((720, 480), Image.Resampling.LANCZOS).save(data, "JPEG", quality=80)
    data.seek(0)
    hits = index.query(data, verify=True)
    found = verdicts(hits)
    assert (found["0"], found["crop"], found["scene"]) == ("same image", "edited", "same object")
    assert {verdict for name, verdict in found.items() if name not in {"0", "crop", "scene"}} <= {
        "similar",
        "different",
    }
    assert box(hits, "0") == (0, 0, 480, 320)
    assert box(hits, "crop") == (0, 0, 384, 256)
    assert np.abs(np.subtract(box(hits, "scene"), POSTER)).max() <= 3
    data.seek(0)
    plain = index.query(data)
    assert [hit.id for hit in plain] == [hit.id for hit in hits]
    assert {hit.verified for hit in plain} == {None}


def test_a_file_a_mirrored_one_and_another_frame_of_a_scene(index: ImageIndex, folder: Path):
    assert verdicts(index.query(folder / "3.jpg", verify=True))["3"] == "identical file"
    assert verdicts(index.query((folder / "3.jpg").read_bytes(), verify=True))["3"] == "identical file"
    found = index.query(ImageOps.mirror(photo(2)), verify=True)
    assert verdicts(found)["2"] == "edited"
    assert box(found, "2") == (0, 0, 480, 320)
    first = photo(5)
    first.paste(photo(99).crop((100, 100, 200, 240)), (60, 90))
    assert verdicts(index.query(first, verify=True))["burst"] == "similar"
    assert verdicts(index.query(letter(2), verify=True))["letter"] in {"similar", "different"}


def test_a_crop_of_the_query_image_is_what_is_looked_for(index: ImageIndex):
    wall = photo(7).resize((640, 480))
    wall.paste(photo(0).resize((300, 200), Image.Resampling.LANCZOS), POSTER[:2])
    hits = index.query(wall, crop=POSTER, verify=True)
    assert verdicts(hits)["0"] == "same image"
    assert index.verify(wall, [hits[0].id], crop=POSTER)[0] == hits[0].verified


def test_explained_hits_have_it_too(index: ImageIndex, folder: Path):
    explained = index.explain(like=folder / "0.jpg", verify=True)
    assert explained.hits == index.like(folder / "0.jpg", verify=True)
    assert verdicts(explained.hits)["crop"] == "edited"


def test_a_hit_that_cannot_be_looked_at_says_why(folder: Path, tmp_path: Path):
    for name in ("gone", "changed", "other"):
        photo(ord(name[0])).save(tmp_path / f"{name}.jpg")
    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path)
        (tmp_path / "gone.jpg").unlink()
        shutil.copy(folder / "0.jpg", tmp_path / "changed.jpg")
        found = verdicts(index.query(photo(ord("g")), verify=True))
        assert (found["gone"], found["changed"]) == ("file gone", "file changed")
        with pytest.raises(ImageError, match=r"gone\.jpg' does not exist"):
            index.like(tmp_path / "gone.jpg", verify=True)


def test_options_that_do_not_fit(index: ImageIndex, folder: Path):
    with pytest.raises(QueryError, match="verify is 3, expected True or False"):
        index.query(folder / "0.jpg", verify=3)
    with pytest.raises(QueryError, match="verify needs the image itself"):
        index.query_codes(index.codes(folder / "0.jpg"), verify=True)
    with pytest.raises(ImageError, match="the BytesIO given as an image is at its end"):
        index.query(io.BytesIO(), verify=True)


def test_the_command_prints_writes_and_lists_it(folder: Path, tmp_path: Path):
    uri = tmp_path / "mgm.db"
    with ImageIndex.open(uri) as index:
        index.ingest(folder)
    query = ("query", "--uri", uri, "-k", "3", "--granularity", "fine", "--verify", folder / "0.jpg")
    done = run(*query, "--html", tmp_path / "page.html", COLUMNS="200")
    assert (done.exit_code, done.stdout.splitlines()[0].split()[-1]) == (0, "verified")
    assert done.stdout.splitlines()[1].endswith("identical file")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.all("p", "verdict")) == 3
    first = json.loads(run(*query, "--json").stdout.splitlines()[0])
    assert first["verified"] == {"verdict": "identical file", "box": [0, 0, 480, 320]}
    assert "verified: identical file" in run(*query, "--explain").stdout


def test_the_api_verifies_by_id_and_by_image(index: ImageIndex, folder: Path):
    pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
    from fastapi.testclient import TestClient

    from mg_milvus.web.app import create_app
    from mg_milvus.web.security import WebSettings

    ids = {name: index.row(folder / f"{name}.jpg").id for name in ("0", "crop", "scene", "3")}
    with TestClient(create_app(index, WebSettings(max_pixels=500_000)), base_url="http://127.0.0.1:8000") as client:
        at = f"/api/verify?ids={','.join(ids.values())}"
        found = client.post(at, content=(folder / "0.jpg").read_bytes()).json()
        assert [own["id"] for own in found] == list(ids.values())
        assert [own["verdict"] for own in found] == ["identical file", "edited", "same object", "different"]
        assert client.get(f"{at}&id={ids['0']}").json() == found
        assert found[0]["box"] == [0, 0, 480, 320]
        assert client.get(f"/api/verify?ids={'0' * 32}&id={ids['0']}").status_code == 404
        assert client.get(f"/api/verify?ids=x&id={ids['0']}").status_code == 422
        assert client.post(at, content=b"no image").status_code == 422
        large = io.BytesIO()
        Image.new("L", (1000, 1000)).save(large, "PNG")
        assert "pixels" in client.post(at, content=large.getvalue()).json()["error"]


def test_a_verification_is_a_small_record():
    assert Verification("file gone").as_dict() == {"verdict": "file gone", "box": None}
