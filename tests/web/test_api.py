"""The API behind the page: the same answers as the library, and nothing for those who may not ask."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi.testclient import TestClient

from mg_milvus.errors import ServeError
from mg_milvus.index import ImageIndex
from mg_milvus.records import Progress
from mg_milvus.search.query import QueryTerm
from mg_milvus.web.app import create_app
from mg_milvus.web.limits import Reports
from mg_milvus.web.media import Thumbnails
from mg_milvus.web.security import WebSettings, check_address
from tests.conftest import kind_of_image, make_photos
from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import FORMATS
from tests.images import collage, encoded, png_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = "http://127.0.0.1:8000"
TOKEN = "correct horse battery"


@pytest.fixture(scope="module")
def folder(labelled_photos: Path) -> Path:
    return labelled_photos


@pytest.fixture(scope="module")
def index(labelled_index: ImageIndex) -> ImageIndex:
    return labelled_index


@pytest.fixture(scope="module")
def client(index: ImageIndex, folder: Path) -> Iterator[TestClient]:
    settings = WebSettings(
        thumbnail_folder=folder.parent / "thumbnails", max_upload_bytes=200_000, max_pixels=1_000_000
    )
    with TestClient(create_app(index, settings), base_url=HERE) as made:
        yield made


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[TestClient, ImageIndex]]:
    """A page over an empty index of the test's own that may be written to."""
    make_photos(tmp_path / "allowed", per_kind=2)
    settings = WebSettings(
        ingest_folders=(tmp_path / "allowed",), upload_folder=tmp_path / "uploads", max_pixels=1_000_000
    )
    with (
        ImageIndex.open("memory:") as opened,
        TestClient(create_app(opened, settings), base_url=HERE) as made,
    ):
        yield made, opened


def jpeg(seed: int = 1, kind: str = "disc") -> bytes:
    return encoded(kind_of_image(kind, seed), "JPEG", quality=92)


def wait_for_ingest(client: TestClient) -> dict:
    """The last event of the running ingest."""
    events = [
        json.loads(line.removeprefix("data: "))
        for line in client.get("/api/ingest/events").text.splitlines()
        if line.startswith("data: ")
    ]
    assert [event["state"] for event in events[:-1]] == ["running"] * (len(events) - 1)
    return events[-1]


def without_seconds(answer: dict) -> dict:
    return {name: value for name, value in answer.items() if name != "seconds"}


def test_an_uploaded_image_is_answered_as_by_the_library(client: TestClient, index: ImageIndex) -> None:
    answer = client.post("/api/query?k=7&weights=coarse=1,fine=2.5&filter=number<15", content=jpeg()).json()
    hits = index.query(jpeg(), k=7, weights={"coarse": 1, "fine": 2.5}, filter="number < 15")
    assert len(hits) == 7
    assert answer["hits"] == json.loads(json.dumps([hit.as_dict() for hit in hits]))
    assert (answer["query"]["width"], answer["query"]["height"]) == (96, 64)
    assert (answer["weights"], answer["fusion"]) == ({"coarse": 1, "fine": 2.5}, "rank")
    assert "candidates" not in answer


def test_hits_and_candidates_say_what_they_are(client: TestClient, index: ImageIndex) -> None:
    answer = client.post("/api/query?k=3&candidates=true", content=jpeg()).json()
    (first, *_) = answer["hits"]
    assert (first["verdict"], answer["remark"]) == ("same image", None)
    own = next(row for row in answer["candidates"] if row["id"] == first["id"])
    assert [own[name] for name in ("verdict", "chance")] == [first[name] for name in ("verdict", "chance")]
    assert len(client.post("/api/query?min=same-image", content=jpeg()).json()["hits"]) == 1
    noise = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)), "PNG")
    remark = client.post("/api/query", content=noise).json()["remark"]
    assert remark == index.query(noise).remark
    assert "is indexed; the nearest are" in remark


def test_asking_by_id_leaves_the_image_out(client: TestClient, index: ImageIndex, folder: Path) -> None:
    asked = index.query(folder / "disc" / "03.jpg", k=1)[0].id
    answer = client.get("/api/query", params={"id": asked, "k": 5, "profile": "instance"}).json()
    assert answer["hits"] == [hit.as_dict() for hit in index.like(asked, k=5, profile="instance")]
    assert asked not in [hit["id"] for hit in answer["hits"]]


def test_codes_ask_the_same_again_without_the_image(client: TestClient) -> None:
    first = client.post("/api/query?candidates=true", content=jpeg()).json()
    again = client.get("/api/query", params={"codes": first["query"]["codes"], "candidates": True}).json()
    assert again["hits"] == first["hits"]
    assert again["candidates"] == first["candidates"]


def test_views_are_asked_again_by_their_codes(client: TestClient, index: ImageIndex) -> None:
    """56 bytes of codes are 448 bits, a byte each; five views of the 256 bits of fine stand behind them."""
    first = client.post("/api/query?profile=instance&k=4", content=jpeg()).json()
    assert len(base64.urlsafe_b64decode(first["query"]["codes"].partition(".")[2] + "==")) == 448 + 5 * 256
    assert first["hits"] == [hit.as_dict() for hit in index.query(jpeg(), profile="instance", k=4)]
    again = client.get("/api/query", params={"codes": first["query"]["codes"], "profile": "instance", "k": 4}).json()
    assert again["hits"] == first["hits"]
    plain = client.post("/api/query?profile=instance&k=4&views=false", content=jpeg()).json()
    assert plain["hits"] == [hit.as_dict() for hit in index.query(jpeg(), profile="instance", k=4, views=False)]
    ranked_again = client.post("/api/query?profile=instance&k=4&candidates=true", content=jpeg()).json()
    assert ranked_again["hits"] == plain["hits"]


def test_a_part_is_asked_for_as_by_the_library(client: TestClient, index: ImageIndex, folder: Path) -> None:
    image = folder / "blocks" / "07.jpg"
    expected = index.query(image, k=5, crop=(10, 5, 60, 40))
    answer = client.post("/api/query?k=5&crop=10,5,60,40", content=image.read_bytes()).json()
    assert [hit["score"] for hit in answer["hits"]] == [hit.score for hit in expected]
    asked = index.query(image, k=1)[0].id
    of_indexed = client.get("/api/query", params={"id": asked, "k": 5, "crop": "10,5,60,40"}).json()
    assert of_indexed["query"]["codes"] == answer["query"]["codes"]
    assert asked not in [hit["id"] for hit in of_indexed["hits"]]


@pytest.fixture(scope="module")
def details(collage_index: ImageIndex) -> Iterator[TestClient]:
    """A page over an index with regions."""
    with TestClient(create_app(collage_index, WebSettings()), base_url=HERE) as made:
        yield made


BOX = (120, 80, 120, 80)
"""The fourth image of a collage."""


def png(seed: int) -> bytes:
    return encoded(collage(seed), "PNG")


def test_a_detail_is_looked_for_among_the_regions(details: TestClient, collage_index: ImageIndex) -> None:
    answer = details.post("/api/query?k=5&crop=120,80,120,80", content=png(7)).json()
    hits = collage_index.query(png(7), k=5, crop=BOX)
    assert answer["hits"] == json.loads(json.dumps([hit.as_dict() for hit in hits]))
    assert answer["hits"][0]["path"].endswith("07.png")
    assert len(answer["hits"][0]["box"]) == 4
    assert (answer["weights"], answer["regions"], answer["query"]["crop"]) == ({"regions": 1}, "contains", list(BOX))
    assert answer["bits"] == {"coarse": 64, "mid": 128, "fine": 256, "regions": 128}
    mixed = details.post("/api/query?k=5&crop=120,80,120,80&weights=regions=1,coarse=2", content=png(7)).json()
    expected = collage_index.query(png(7), k=5, crop=BOX, weights={"regions": 1, "coarse": 2})
    assert mixed["hits"] == json.loads(json.dumps([hit.as_dict() for hit in expected]))


def test_every_region_of_an_image_is_looked_for(details: TestClient, collage_index: ImageIndex) -> None:
    answer = details.post("/api/query?k=4&regions=overlap", content=png(9)).json()
    hits = collage_index.query(png(9), k=4, regions="overlap")
    assert answer["hits"] == json.loads(json.dumps([hit.as_dict() for hit in hits]))
    # Summed over the windows looked for: 2 x 2 and 4 x 4 in the first pass, 4 x 4 and 6 x 6 in the second.
    assert answer["bits"]["regions"] == (4 + 16 + 16 + 36) * 128


def test_without_a_query_for_regions_there_are_none(details: TestClient, collage_index: ImageIndex) -> None:
    answer = details.post("/api/query?k=4", content=png(9)).json()
    assert answer["hits"] == json.loads(json.dumps([hit.as_dict() for hit in collage_index.query(png(9), k=4)]))
    assert answer["regions"] is None
    assert list(answer["bits"]) == ["coarse", "mid", "fine"]
    assert all("box" not in hit for hit in answer["hits"])


def test_an_indexed_image_asks_the_regions_with_its_file(
    details: TestClient, collage_index: ImageIndex, collages: Path
) -> None:
    asked = collage_index.query(collages / "07.png", k=1)[0].id
    for options in ({"crop": "120,80,120,80"}, {"regions": "contains"}, {"weights": "regions=1,fine=1"}):
        # Scores, not ranks: these do not depend on who else is a candidate.
        answer = details.get("/api/query", params={"id": asked, "k": 3, "fusion": "score", **options}).json()
        weights = {"regions": 1, "fine": 1} if "weights" in options else None
        crop = BOX if "crop" in options else None
        named = options.get("regions")
        hits = collage_index.query(collages / "07.png", k=4, crop=crop, regions=named, weights=weights, fusion="score")
        assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in hits if hit.id != asked][:3]
    plain = details.get("/api/query", params={"id": asked, "k": 3}).json()
    assert plain["hits"] == json.loads(json.dumps([hit.as_dict() for hit in collage_index.like(asked, k=3)]))


def test_candidates_with_regions_rank_as_any_weights_do(details: TestClient, collage_index: ImageIndex) -> None:
    url = "/api/query?candidates=true&depth=6&k=6&crop=120,80,120,80"
    answer = details.post(url, content=png(7)).json()
    hits = collage_index.query(png(7), k=6, depth=6, crop=BOX)
    assert answer["hits"] == json.loads(json.dumps([hit.as_dict() for hit in hits]))
    candidates = {row["id"]: row for row in answer["candidates"]}
    assert {key for key, row in candidates.items() if "regions" in row["retrieved_by"]} == {hit.id for hit in hits}
    for hit in hits:
        own = candidates[hit.id]["distances"]
        assert set(candidates[hit.id]["ranked_by"]) == set(own)
        assert {name: round(distance) for name, distance in own.items()} == hit.distances
        assert candidates[hit.id].get("box") == (list(hit.box) if hit.box else None)
    whole = {hit.id for hit in collage_index.query(png(7), k=6, depth=6, granularity="coarse")}
    assert {key for key, row in candidates.items() if "coarse" in row["retrieved_by"]} == whole


def test_many_kinds_of_queries_are_encoded_together(details: TestClient, collage_index: ImageIndex) -> None:
    queries = ["crop=120,80,120,80", "regions=overlap", "k=3", "crop=0,0,120,80&weights=regions=1,mid=1"] * 3
    with ThreadPoolExecutor(len(queries)) as pool:
        answers = list(pool.map(lambda one: details.post(f"/api/query?{one}", content=png(5)).json(), queries))
    for query, answer in zip(queries, answers, strict=True):
        alone = details.post(f"/api/query?{query}", content=png(5)).json()
        assert without_seconds(answer) == without_seconds(alone)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("regions=corner", "regions is 'corner', expected contains or overlap"),
        ("crop=0,0,4,4", "a region of 4x4 pixels is too small to be recognised"),
        ("regions=contains&fusion=server", "the server cannot fuse the regions"),
    ],
)
def test_a_bad_query_for_regions_is_one_sentence(details: TestClient, query: str, sentence: str) -> None:
    answer = details.post(f"/api/query?{query}", content=png(1))
    assert (answer.status_code, sentence in answer.json()["error"]) == (400, True), answer.text


def test_codes_cannot_ask_the_regions(details: TestClient, client: TestClient) -> None:
    codes = details.post("/api/query", content=png(1)).json()["query"]["codes"]
    answer = details.get("/api/query", params={"codes": codes, "regions": "contains"})
    assert (answer.status_code, "with the image itself" in answer.json()["error"]) == (400, True)
    without = client.post("/api/query?regions=contains", content=jpeg())
    assert "this collection has no codes of regions" in without.json()["error"]


def test_candidates_of_all_granularities_rank_as_any_weights_do(client: TestClient, index: ImageIndex) -> None:
    answer = client.post("/api/query?candidates=true&depth=10&weights=mid=1", content=jpeg()).json()
    for name in ("coarse", "mid", "fine"):
        found = {row["id"] for row in answer["candidates"] if name in row["retrieved_by"]}
        assert found == {hit.id for hit in index.query(jpeg(), k=10, depth=10, granularity=name)}
    assert len(answer["candidates"]) > 10
    assert answer["hits"] == [hit.as_dict() for hit in index.query(jpeg(), depth=10, granularity="mid")]


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("k=0", 422, "greater than or equal to 1"),
        ("weights=coarse", 400, "coarse=1,fine=3"),
        ("weights=coarse=nan", 400, "expected a number"),
        ("weights=gross=1", 400, "unknown granularity 'gross'"),
        ("profile=loud", 400, "expected auto, category, object, instance, balanced"),
        ("fusion=magic", 400, "rank, score, chance, server"),
        ("min=kind", 400, "expected same-image, same-object"),
        ("max_chance=2", 400, "max_chance is 2.0"),
        ("filter=width >", 400, "width >"),
        ("filter=colour == 1", 400, "colour"),
        ("crop=1,2,3", 400, "X,Y,W,H"),
        ("crop=0,0,500,500", 400, "96 pixels wide"),
        ("candidates=true&fusion=server", 400, "'rank' or 'score'"),
    ],
)
def test_a_bad_query_is_one_sentence(client: TestClient, query: str, status: int, sentence: str) -> None:
    answer = client.post(f"/api/query?{query}", content=jpeg())
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ({}, 400, "give an id or codes"),
        ({"id": "0" * 32}, 404, "neither the id nor the path"),
        ({"id": "/etc/passwd"}, 422, "pattern"),
        ({"codes": "0123456789abcdef.AAAA"}, 400, "made by the encoder '0123456789abcdef'"),
    ],
)
def test_a_query_about_nothing_is_refused(client: TestClient, query: dict, status: int, sentence: str) -> None:
    answer = client.get("/api/query", params=query)
    assert (answer.status_code, sentence in answer.json()["error"]) == (status, True), answer.text


def test_damaged_codes_are_refused(client: TestClient) -> None:
    codes = client.post("/api/query", content=jpeg()).json()["query"]["codes"]
    for damaged in (codes[:-4], codes[:-4] + "é*()", codes.replace(".", ".A")):
        answer = client.get("/api/query", params={"codes": damaged})
        assert (answer.status_code, "expected 448" in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.parametrize(
    "content", [b"", b"This is no image.", jpeg()[:700], png_header(50_000, 50_000), b"<svg xmlns='x'/>"]
)
def test_a_hostile_image_is_refused_and_the_server_lives(client: TestClient, content: bytes) -> None:
    answer = client.post("/api/query", content=content)
    assert (answer.status_code, list(answer.json())) == (422, ["error"])
    assert client.post("/api/query?k=1", content=jpeg()).status_code == 200


def test_uploads_are_limited_in_bytes_and_pixels(client: TestClient) -> None:
    assert client.post("/api/query", content=b"x" * 200_001).status_code == 413
    streamed = client.post("/api/query", content=iter([b"x" * 100_000] * 3))  # no length stated
    assert streamed.status_code == 413
    large = encoded(Image.new("RGB", (1001, 1000)), "PNG")
    assert "more than max_pixels=1000000" in client.post("/api/query", content=large).json()["error"]


def test_thumbnails_are_small_cached_and_of_rows_only(client: TestClient, index: ImageIndex, tmp_path: Path) -> None:
    row = client.get("/api/sample?count=1").json()[0]
    answer = client.get(f"/api/images/{row['id']}/thumbnail?side=240")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, no-cache"
    again = client.get(f"/api/images/{row['id']}/thumbnail?side=240", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert Image.open(io.BytesIO(answer.content)).size == (96, 64)  # never enlarged
    wide = kind_of_image("disc", 99, (900, 300))
    wide.save(tmp_path / "wide.png")
    index.ingest(tmp_path / "wide.png")
    row_id = index.query(tmp_path / "wide.png", k=1)[0].id
    try:
        small = client.get(f"/api/images/{row_id}/thumbnail?side=240")
        assert Image.open(io.BytesIO(small.content)).size == (240, 80)
        assert client.get(f"/api/images/{row_id}/thumbnail?side=240").content == small.content
        (tmp_path / "wide.png").unlink()
        assert client.get(f"/api/images/{row_id}/thumbnail?side=240").status_code == 422
        gone = client.get(f"/api/images/{row_id}/thumbnail?side=480")
        assert (gone.status_code, "gone" in gone.json()["error"]) == (422, True)
    finally:
        index.delete([row_id])
    assert client.get(f"/api/images/{row_id}/thumbnail?side=240").status_code == 404  # no row, no image
    assert client.get(f"/api/images/{row['id']}/thumbnail?side=5000").status_code == 400


def test_the_cache_forgets_what_was_unused_for_longest(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / "ab").mkdir(exist_ok=True)
        file = tmp_path / "ab" / f"{name}.jpg"
        file.write_bytes(b"x" * 100)
        os.utime(file, (time.time() - age, time.time() - age))
    Thumbnails(tmp_path, 1).trim(most=250)
    assert sorted(file.stem for file in tmp_path.glob("*/*")) == ["middle", "new"]


def test_the_original_is_served_only_while_it_is_an_image(
    client: TestClient, index: ImageIndex, tmp_path: Path
) -> None:
    file = tmp_path / "näme.jpg"
    file.write_bytes(jpeg(50))
    index.ingest(file)
    row_id = index.query(file, k=1)[0].id
    try:
        answer = client.get(f"/api/images/{row_id}/original")
        assert (answer.content, answer.headers["content-type"]) == (jpeg(50), "image/jpeg")
        assert "n%C3%A4me.jpg" in answer.headers["content-disposition"]
        file.write_text("<script>alert(1)</script>")
        assert client.get(f"/api/images/{row_id}/original").status_code == 422
    finally:
        index.delete([row_id])


@pytest.mark.parametrize(
    "path",
    [
        "/api/images/..%2f..%2fetc%2fpasswd/original",
        "/api/images/%2fetc%2fpasswd/thumbnail",
        "/api/images/etc/original?path=/etc/passwd",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/app.py",
        "/static/..%5capp.py",
    ],
)
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in {404, 422}
    assert b"root:" not in answer.content
    assert b"import" not in answer.content


@pytest.fixture(scope="module")
def copies(copied_index: ImageIndex) -> Iterator[TestClient]:
    with TestClient(create_app(copied_index, WebSettings(read_only=True)), base_url=HERE) as made:
        yield made


def test_near_duplicates_are_those_of_the_library(copies: TestClient, copied_index: ImageIndex) -> None:
    answer = copies.get("/api/duplicates?distance=10&keep=largest").json()
    expected = copied_index.duplicates(distance=10, keep="largest").as_dict()
    assert without_seconds(answer) == without_seconds(json.loads(json.dumps(expected)))
    names = [{Path(member["path"]).name for member in group["members"]} for group in answer["groups"]]
    assert sorted(map(sorted, names)) == [["05-copy.jpg", "05.jpg"], ["09-copy.jpg", "09.jpg"]]
    assert copied_index.count() == 44


def test_near_duplicates_are_told_about_as_they_are_found(copies: TestClient, copied_index: ImageIndex) -> None:
    with ThreadPoolExecutor(3) as pool:
        texts = list(pool.map(lambda _: copies.get("/api/duplicates/events?distance=10").text, range(3)))
    for text in texts:
        events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
        assert [event["state"] for event in events[:-1]] == ["running"] * (len(events) - 1)
        last = events[-1]
        assert (last["state"], last["stage"], last["done"] == last["total"]) == ("done", "comparing", True)
        report = copied_index.duplicates(distance=10)
        assert last["report"]["pairs"] == report.pairs == 2
        assert (len(last["report"]["groups"]), last["report"]["images"], last["report"]["rows"]) == (2, 4, 44)


def test_a_search_for_near_duplicates_ends_when_nobody_listens(copied_index: ImageIndex) -> None:
    """As a server does when the connection is closed: it stops asking for events."""
    import asyncio

    from mg_milvus.web.duplicates import duplicate_events

    ended, told = threading.Event(), threading.Event()

    class Endless:
        schema = copied_index.schema

        def duplicates(self, *, progress: Callable[[Progress], None], **_: object) -> None:
            try:
                for done in range(10_000):
                    progress(Progress("comparing", done, 10_000, 0))
                    told.set()
                    time.sleep(0.01)
            finally:
                ended.set()

    async def listen_for_a_moment() -> None:
        import anyio

        state = SimpleNamespace(
            index=Endless(), duplicates_limiter=anyio.CapacityLimiter(1), shutdown=threading.Event(), reports=Reports()
        )
        stream = duplicate_events(state, {})
        await anext(stream)
        await asyncio.to_thread(told.wait, 10)
        await stream.aclose()
        assert await asyncio.to_thread(ended.wait, 10)

    asyncio.run(listen_for_a_moment())


@pytest.mark.parametrize("path", ["/api/duplicates", "/api/duplicates/events"])
def test_a_search_for_near_duplicates_ends_with_the_server(
    copies: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    ending = copies.app.state.mgm.shutdown

    def endless(self: ImageIndex, *, progress: Callable[[Progress], None], **_: object) -> None:
        for done in range(10_000):
            progress(Progress("comparing", done, 10_000, 0))
            time.sleep(0.01)
            if done == 5:
                ending.set()

    monkeypatch.setattr(ImageIndex, "duplicates", endless)
    started = time.monotonic()
    try:
        answer = copies.get(path)
    finally:
        ending.clear()
    assert time.monotonic() - started < 50  # of the hundred that it would take
    assert answer.status_code == (503 if path == "/api/duplicates" else 200)


def test_who_watches_an_ingest_is_let_go_when_the_server_ends(
    own: tuple[TestClient, ImageIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = own
    go_on = threading.Event()

    def held(*_: object, **__: object) -> None:
        go_on.wait(60)
        raise ServeError("it was let go")

    monkeypatch.setattr(ImageIndex, "ingest", held)
    try:
        assert client.post("/api/ingest", json={"folder": str(tmp_path / "allowed")}).status_code == 202
        client.app.state.mgm.shutdown.set()
        told = client.get("/api/ingest/events").text
    finally:
        go_on.set()
    assert told.count("data: ") == 1
    assert json.loads(told.removeprefix("data: "))["state"] == "running"


def test_a_bad_search_for_near_duplicates_is_one_sentence(copies: TestClient) -> None:
    assert copies.get("/api/duplicates?keep=ugliest").status_code == 400
    assert copies.get("/api/duplicates?precision=2").status_code == 422
    text = copies.get("/api/duplicates/events?distance=9&precision=0.9").text
    last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert (last["state"], "distance and precision were both given" in last["error"]) == ("failed", True)


def test_samples_are_random_rows_that_match(client: TestClient, index: ImageIndex) -> None:
    rows = client.get("/api/sample", params={"count": 15, "filter": 'kind == "stripes"'}).json()
    assert len({row["id"] for row in rows}) == 15
    assert {row["kind"] for row in rows} == {"stripes"}
    assert len(client.get("/api/sample?count=1000").json()) == index.count() == 60
    orders = {tuple(row["id"] for row in client.get("/api/sample?count=60").json()) for _ in range(4)}
    assert len(orders) == 4
    assert client.get(f"/api/images/{rows[0]['id']}").json() == rows[0]


def test_another_name_of_this_machine_is_a_rebound_domain(client: TestClient) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example:8000", "localhost.evil.example", "", "[::1].evil.example"):
        assert client.get("/api/info", headers={"host": host}).status_code == 421, host
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000"):
        assert client.get("/api/info", headers={"host": host}).status_code == 200, host


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_sites_may_not_ask(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/api/query", content=jpeg(), headers=headers).status_code == 403
    assert client.delete("/api/images/" + "0" * 32, headers=headers).status_code == 403
    if "sec-fetch-site" in headers:
        assert client.get("/api/sample", headers=headers).status_code == 403
        assert client.get("/", headers=headers | {"sec-fetch-mode": "navigate"}).status_code == 200  # a link
        assert client.get("/", headers=headers | {"sec-fetch-mode": "no-cors"}).status_code == 403


def test_the_page_itself_may_ask(client: TestClient) -> None:
    headers = {"origin": HERE, "sec-fetch-site": "same-origin"}
    assert client.post("/api/query?k=1", content=jpeg(), headers=headers).status_code == 200


def test_a_token_is_asked_of_everyone(index: ImageIndex) -> None:
    with TestClient(create_app(index, WebSettings(token=TOKEN)), base_url="http://photos.example") as client:
        for path in ("/api/info", "/api/sample", "/metrics", "/api/openapi.json", "/api/images/" + "0" * 32):
            assert client.get(path).status_code == 401, path
        assert client.post("/api/query", content=jpeg()).status_code == 401
        assert client.get("/api/info", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/api/info", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        page = client.get("/")
        assert (page.status_code, 'name="token"' in page.text, "corel" in page.text) == (401, True, False)
        assert client.get("/health").status_code == 200
        assert client.get("/?token=wrong").status_code == 401
        assert 'name="query" value="id=x&amp;k=1"' in client.get("/?id=x&token=wrong&k=1").text
        assert client.post("/sign-in", data={"token": "wrong"}).status_code == 401
        asked = {"token": TOKEN, "query": "id=x//evil.example"}
        signed_in = client.post("/sign-in", data=asked, follow_redirects=False)
        assert signed_in.headers["location"] == "./?id=x//evil.example"
        cookie = signed_in.headers["set-cookie"].lower()
        assert ("httponly" in cookie, "samesite=lax" in cookie, signed_in.status_code) == (True, True, 303)
        assert client.get("/api/info").status_code == 200  # with the cookie


def test_the_address_with_the_token_signs_in_and_forgets_it(index: ImageIndex) -> None:
    with TestClient(create_app(index, WebSettings(token=TOKEN)), base_url="http://photos.example") as client:
        answer = client.get("/", params={"token": TOKEN, "id": "x"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "./?id=x")
        assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("host", "token", "sentence"),
    [
        ("0.0.0.0", None, "a token is needed"),
        ("192.168.1.5", None, "a token is needed"),
        ("photos.example", None, "a token is needed"),
        ("127.0.0.1", "short", "at least 12"),
        ("0.0.0.0", "päßwort-päßwort", "ASCII"),
    ],
)
def test_beyond_this_machine_only_with_a_good_token(host: str, token: str | None, sentence: str) -> None:
    with pytest.raises(ServeError, match=sentence):
        check_address(host, token)


@pytest.mark.parametrize(
    ("host", "token"), [("127.0.0.1", None), ("::1", None), ("localhost", None), ("0.0.0.0", TOKEN)]
)
def test_these_addresses_are_fine(host: str, token: str | None) -> None:
    check_address(host, token)


def test_read_only_changes_nothing(index: ImageIndex, tmp_path: Path) -> None:
    settings = WebSettings(read_only=True, ingest_folders=(tmp_path,), upload_folder=tmp_path)
    with TestClient(create_app(index, settings), base_url=HERE) as client:
        row_id = client.get("/api/sample?count=1").json()[0]["id"]
        for answer in (
            client.delete(f"/api/images/{row_id}"),
            client.post("/api/uploads?name=a.jpg", content=jpeg()),
            client.post("/api/ingest", json={"folder": str(tmp_path)}),
        ):
            assert (answer.status_code, "read-only" in answer.json()["error"]) == (403, True)
        assert 'id="add"' not in client.get("/").text
    assert (index.count(), list(tmp_path.iterdir())) == (60, [])


def test_uploads_are_ingested_with_progress(own: tuple[TestClient, ImageIndex], tmp_path: Path) -> None:
    client, index = own
    sent = ["cat.jpg", "../../evil.png", "a\\b/ünï  cödé.JPG", ".hidden", "cat.jpg"]
    names = [
        client.post("/api/uploads", params={"name": name}, content=jpeg(seed)).json()["upload"]
        for seed, name in enumerate(sent)
    ]
    assert [name.rpartition("-")[0] for name in names] == ["cat", "evil", "ünï-cödé", "hidden", "cat"]
    assert sorted(file.name for file in (tmp_path / "uploads").iterdir()) == sorted(names)
    assert client.post("/api/ingest", json={"uploads": names}).status_code == 202
    last = wait_for_ingest(client)
    assert (last["state"], last["done"], last["report"]["added"]) == ("done", 5, 5)
    assert index.count() == 5
    hit = client.post("/api/query?k=1", content=jpeg(3)).json()["hits"][0]
    assert Path(hit["path"]).name == names[3]
    assert client.delete(f"/api/images/{hit['id']}").json() == {"deleted": 1}
    assert index.count() == 4
    assert Path(hit["path"]).exists()


def test_only_images_are_kept(own: tuple[TestClient, ImageIndex], tmp_path: Path) -> None:
    client, _ = own
    answer = client.post("/api/uploads?name=x.jpg", content=b"#!/bin/sh")
    assert (answer.status_code, "'x.jpg' is not an image" in answer.json()["error"]) == (422, True)
    assert not (tmp_path / "uploads").exists()


@pytest.mark.parametrize("name", ["../allowed/disc/00.jpg", "/etc/passwd", "none-0123456789ab.jpg", "..", ""])
def test_uploads_are_named_as_they_were_kept(own: tuple[TestClient, ImageIndex], name: str) -> None:
    answer = own[0].post("/api/ingest", json={"uploads": [name]})
    assert (answer.status_code, "there is no upload" in answer.json()["error"]) == (400, True)


def test_only_allowed_folders_are_ingested(own: tuple[TestClient, ImageIndex], tmp_path: Path) -> None:
    client, index = own
    secret = make_photos(tmp_path / "secret", per_kind=1)
    (tmp_path / "allowed" / "way out").symlink_to(secret)
    for folder in (str(secret), f"{tmp_path}/allowed/../secret", f"{tmp_path}/allowed/way out", "/", "\0", "~"):
        answer = client.post("/api/ingest", json={"folder": folder})
        assert (answer.status_code, "may not be ingested" in answer.json()["error"]) == (400, True), folder
    assert client.post("/api/ingest", json={"folder": str(tmp_path / "allowed" / "disc")}).status_code == 202
    assert wait_for_ingest(client)["report"]["added"] == 2
    assert index.count() == 2


def test_one_ingest_at_a_time_and_it_can_be_stopped(
    own: tuple[TestClient, ImageIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, index = own
    going, go_on = threading.Event(), threading.Event()
    ingest = ImageIndex.ingest

    def slow(self: ImageIndex, *sources: Path, **options: object) -> object:
        going.set()
        assert go_on.wait(20)
        return ingest(self, *sources, **options)

    monkeypatch.setattr(ImageIndex, "ingest", slow)
    folder = {"folder": str(tmp_path / "allowed")}
    assert client.get("/api/ingest").status_code == 404
    assert client.post("/api/ingest", json=folder).json()["state"] == "running"
    assert going.wait(20)
    assert "running already" in client.post("/api/ingest", json=folder).json()["error"]
    assert client.delete("/api/ingest").status_code == 202
    go_on.set()
    last = wait_for_ingest(client)
    assert (last["state"], last["report"]["interrupted"]) == ("done", True)
    assert client.post("/api/ingest", json=folder).status_code == 202
    assert wait_for_ingest(client)["report"]["interrupted"] is False
    assert index.count() == 6


def test_before_the_first_ingest(own: tuple[TestClient, ImageIndex]) -> None:
    client, _ = own
    assert client.get("/").status_code == 200
    assert client.get("/health").json() == {"status": "ok"}
    answer = client.post("/api/query", content=jpeg())
    assert (answer.status_code, "mgm ingest" in answer.json()["error"]) == (404, True)


def test_concurrent_queries_are_encoded_together(client: TestClient, index: ImageIndex) -> None:
    def batches() -> tuple[float, float]:
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        return float(lines["mgm_batch_images_count"]), float(lines["mgm_batch_images_sum"])

    images = [jpeg(i) for i in range(16)]
    before = batches()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda data: client.post("/api/query?k=3", content=data).json(), images))
    passes, encoded_images = (after - b for after, b in zip(batches(), before, strict=True))
    assert encoded_images == 16
    assert passes < 16
    for data, answer in zip(images, answers, strict=True):
        assert answer["hits"] == [hit.as_dict() for hit in index.query(data, k=3)]


def test_every_answer_keeps_the_browser_inside(client: TestClient) -> None:
    for path in ("/", "/docs", "/api/info", "/api/query", "/static/main.js", "/nowhere"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert (headers["x-content-type-options"], headers["cross-origin-resource-policy"]) == (
            "nosniff",
            "same-origin",
        )


def test_info_health_metrics_and_documentation(client: TestClient, index: ImageIndex) -> None:
    assert client.get("/api/info").json() == json.loads(json.dumps(index.info().as_dict()))
    assert client.get("/health").json() == {"status": "ok"}
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "\nmgm_rows 60.0\n" in metrics.text
    assert 'route="/api/info",status="200"' in metrics.text
    documentation = client.get("/docs").text
    paths = client.get("/api/openapi.json").json()["paths"]
    assert len(paths) >= 11
    assert all(path in documentation for path in paths)


def test_nothing_comes_from_outside() -> None:
    import mg_milvus.web

    for file in Path(mg_milvus.web.__file__).parent.rglob("*.*"):
        if file.suffix in {".js", ".css", ".jinja", ".svg"}:
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert re.findall(r"https?://|[\"'(]//|@import", text) == [], file
            assert "innerHTML" not in text, file


def test_queries_are_timed(client: TestClient) -> None:
    started = time.perf_counter()
    answer = client.post("/api/query", content=jpeg()).json()
    assert 0 < answer["seconds"] <= time.perf_counter() - started
    assert set(without_seconds(answer)) == {
        "query", "k", "depth", "fusion", "rrf_k", "weights", "regions", "bits", "hits", "remark",
    }  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_spoiled_uploads_are_answered_or_refused(client: TestClient, kind: str) -> None:
    answers = [client.post("/api/query?k=1", content=mutated(kind, number)) for number in range(15)]
    assert {answer.status_code for answer in answers} <= {200, 400, 413, 415, 422}
    for answer in answers:
        assert answer.json()
        assert answer.status_code == 200 or "Traceback" not in answer.text


def test_several_images_are_one_query(client: TestClient, index: ImageIndex, folder: Path) -> None:
    one, two, three = jpeg(1), jpeg(2, "blocks"), jpeg(3, "stripes")
    form = [("image", ("a.jpg", one)), ("image", ("b.jpg", two)), ("unlike", ("c.jpg", three))]
    answer = client.post("/api/query?k=6", files=form).json()
    expected = [hit.as_dict() for hit in index.query([one, two], unlike=[three], k=6)]
    assert answer["hits"] == json.loads(json.dumps(expected))
    assert [term["weight"] for term in answer["query"]["terms"]] == [1, 1, -1]
    # Their codes alone, which an address holds, give the same answer.
    first, second, third = (term["codes"] for term in answer["query"]["terms"])
    again = client.get("/api/query", params={"k": 6, "codes": [first, second], "unlike_codes": [third]}).json()
    assert again["hits"] == answer["hits"]


def test_hits_refine_a_query(client: TestClient, index: ImageIndex, folder: Path) -> None:
    wanted, unwanted = (index.query(folder / name, k=1)[0].id for name in ("disc/03.jpg", "disc/04.jpg"))
    answer = client.post("/api/query", params={"k": 5, "like": [wanted], "unlike": [unwanted]}, content=jpeg()).json()
    terms = [QueryTerm(jpeg()), QueryTerm(like=wanted), QueryTerm(like=unwanted, weight=-1.0)]
    assert answer["hits"] == json.loads(json.dumps([hit.as_dict() for hit in index.query_together(terms, k=5)]))
    assert not {wanted, unwanted} & {hit["id"] for hit in answer["hits"]}
    by_id = client.get("/api/query", params={"k": 5, "id": wanted, "unlike": [unwanted]}).json()
    assert by_id["hits"] == [hit.as_dict() for hit in index.query_together(terms[1:], k=5)]


@pytest.mark.parametrize(
    ("query", "files", "status", "said"),
    [
        ("", [("image", b"no image"), ("image", b"")], 422, "image 1 of 2 is not an image"),
        ("", [("photo", b"")], 422, "a part 'photo', expected image or unlike: curl -F image=@a.jpg"),
        ("", [("unlike", jpeg())], 400, "no image to look for"),
        ("?candidates=true", [("image", jpeg())] * 2, 400, "candidates are those of one image"),
        ("?like=x", [("image", jpeg())], 422, "should match pattern"),
        ("", [("image", bytes(200_001)), ("image", b"")], 413, "more than 200,000 bytes"),
    ],
)
def test_what_is_wrong_with_several_images_is_said(
    client: TestClient, query: str, files: list, status: int, said: str
) -> None:
    answer = client.post(f"/api/query{query}", files=[(name, ("x.jpg", data)) for name, data in files])
    assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.json()


def test_selected_images_are_listed_tagged_and_removed(own: tuple[TestClient, ImageIndex], tmp_path: Path) -> None:
    client, index = own
    index.ingest(tmp_path / "allowed")
    rows = index.images(order_by="path")
    ids = [row.id for row in rows[:3]]
    for form, start in (("txt", rows[0].path.encode()), ("csv", b"\xef\xbb\xbfid,path,"), ("json", b"[\n {")):
        made = client.post("/api/lists", json={"ids": ids, "form": form}).json()
        assert (made["images"], made["missing"]) == (3, [])
        sent = client.get(f"/api/lists/{made['name']}")
        assert sent.headers["content-disposition"] == f'attachment; filename="images.{form}"'
        assert sent.content.startswith(start)
    Path(rows[2].path).unlink()
    made = client.post("/api/lists", json={"ids": ids, "form": "zip"}).json()
    assert (made["images"], made["missing"], made["bytes"]) == (2, [rows[2].path], rows[0].size + rows[1].size)
    with zipfile.ZipFile(io.BytesIO(client.get(f"/api/lists/{made['name']}").content)) as archive:
        assert [archive.read(name) for name in archive.namelist()] == [Path(row.path).read_bytes() for row in rows[:2]]
    gone = client.post("/api/lists", json={"ids": ids[2:], "form": "zip"})
    assert (gone.status_code, "none of these files is there" in gone.json()["error"]) == (422, True)
    assert client.get("/api/lists/unknown").status_code == 404
    assert client.post("/api/images/tag", json={"ids": ids, "add": ["beach"]}).json() == {"changed": 3}
    assert [row.id for row in index.images(filter='user_tags == "beach"', order_by="path")] == ids
    assert client.get(f"/api/images/{ids[0]}").json()["user_tags"] == ["beach"]
    wrong = client.post("/api/images/tag", json={"ids": ids, "add": ["a|b"]})
    assert (wrong.status_code, "without |" in wrong.json()["error"]) == (400, True)
    assert client.post("/api/images/delete", json={"ids": ids[:2]}).json() == {"deleted": 2}
    assert index.count() == 4
    assert Path(rows[0].path).is_file()
    assert client.post("/api/images/delete", json={"ids": ids[:2]}).status_code == 404


def test_a_read_only_page_lists_and_changes_nothing(index: ImageIndex) -> None:
    ids = [index.images(limit=1)[0].id]
    with TestClient(create_app(index, WebSettings(read_only=True)), base_url=HERE) as client:
        assert client.post("/api/lists", json={"ids": ids, "form": "txt"}).status_code == 200
        assert client.post("/api/images/tag", json={"ids": ids, "add": ["x"]}).status_code == 403
        assert client.post("/api/images/delete", json={"ids": ids}).status_code == 403
    assert index.count() == 60


def test_copies_are_moved_and_put_back_over_the_page(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 1)
    (photos / "disc" / "00~copy.jpg").write_bytes((photos / "disc" / "00.jpg").read_bytes())
    settings = WebSettings(move_folder=tmp_path / "aside", ignore_file=tmp_path / "pairs.jsonl")
    with ImageIndex.open("memory:") as index, TestClient(create_app(index, settings), base_url=HERE) as client:
        index.ingest(photos)

        def search() -> dict:
            text = client.get("/api/duplicates/events?distance=2&keep=first").text
            return json.loads(text.splitlines()[-2].removeprefix("data: "))["report"]

        report = search()
        kept, copy = report["groups"][0]["members"]
        asked = {"report": report["name"], "ids": [copy["id"]]}
        assert client.get("/api/duplicates/moved").json() == {"undo": False}
        both = client.post("/api/duplicates/move", json=asked | {"ids": [kept["id"], copy["id"]]})
        assert (both.status_code, "keep one of them" in both.json()["error"]) == (400, True)
        assert client.post("/api/duplicates/move", json=asked | {"report": "x"}).status_code == 404
        assert client.post("/api/duplicates/move", json=asked).json()["files"] == [copy["path"]]
        assert not Path(copy["path"]).exists()
        assert index.count() == 3
        assert client.get("/api/duplicates/moved").json() == {"undo": True}
        assert client.post("/api/duplicates/undo").json()["files"] == [copy["path"]]
        assert Path(copy["path"]).is_file()
        assert index.count() == 4
        different = [row.id for row in index.images(filter='not (path like "%copy%")')][:2]
        assert client.post("/api/duplicates/ignore", json={"ids": different}).json() == {"pairs": 1}
        assert (tmp_path / "pairs.jsonl").read_text().count("\n") == 1
        assert search()["groups"]
    with TestClient(create_app(index, WebSettings()), base_url=HERE) as client:
        for path in ("move", "undo", "ignore"):
            refused = client.post(f"/api/duplicates/{path}", json=asked | {"ids": different})
            assert refused.status_code in {400, 422}, path


def test_what_is_typed_is_completed(client: TestClient, index: ImageIndex) -> None:
    assert client.get("/api/values?field=kind&text=S").json() == {"disc": 20, "stripes": 20, "blocks": 20}
    assert client.get("/api/values?field=kind&text=STR").json() == {"stripes": 20}
    assert client.get("/api/spellings?field=kind&text=STR").json() == ["str"]
    unknown = client.get("/api/values?field=number")
    assert (unknown.status_code, unknown.json()["error"]) == (
        400, "'number' is not a field of texts, expected one of: kind",
    )  # fmt: skip
    counts = index.tags()
    found = client.get("/api/tags?prefix=").json()
    assert found == dict(list(counts.items())[:20])


def test_shared_images_are_kept_for_a_week_and_bounded(index: ImageIndex, tmp_path: Path) -> None:
    settings = WebSettings(share_folder=tmp_path / "shares")
    with TestClient(create_app(index, settings), base_url=HERE) as client:
        made = client.post("/api/shares?name=x.jpg", content=jpeg()).json()
        assert re.fullmatch(r"share\.[A-Za-z0-9_-]{16}", made["codes"])
        known = client.get(f"/api/shares/{made['codes']}").json()
        assert (known["name"], known["width"], known["height"], known["regions"]) == ("x.jpg", 96, 64, False)
        small = Image.open(io.BytesIO(base64.b64decode(known["thumbnail"].partition(",")[2])))
        assert small.size == (96, 64)
        answer = client.get("/api/query", params={"codes": made["codes"], "k": 7}).json()
        assert answer["hits"] == [hit.as_dict() for hit in index.query(jpeg(), k=7)]
        part = client.post("/api/shares?crop=10,5,60,40", content=jpeg()).json()["codes"]
        answer = client.get("/api/query", params={"codes": part, "k": 7}).json()
        assert answer["hits"] == [hit.as_dict() for hit in index.query(jpeg(), k=7, crop=(10, 5, 60, 40))]
        (file,) = (tmp_path / "shares").glob(f"{part.removeprefix('share.')}.json")
        # A refit has given the collection another encoder: the small copy, here of the image's size, is encoded again.
        file.write_text(file.read_text().replace(index.fingerprint, "f" * 16))
        answer = client.get("/api/query", params={"codes": part, "k": 7}).json()
        small_hits = index.query(base64.b64decode(known["thumbnail"].partition(",")[2]), k=7, crop=(10, 5, 60, 40))
        assert answer["hits"] == [hit.as_dict() for hit in small_hits]
        os.utime(file, (time.time() - 8 * 86_400,) * 2)
        gone = client.get("/api/query", params={"codes": part})
        assert (gone.status_code, "this link has expired" in gone.json()["error"]) == (400, True)
        assert client.get("/api/shares/..%2fx").status_code in {400, 404}
        shares = client.app.state.mgm.shares
        shares._made.extend([time.monotonic()] * 60)
        busy = client.post("/api/shares", content=jpeg())
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")
        shares._made.clear()
        client.post("/api/shares", content=jpeg())
        assert not file.exists()  # the week is over
    with TestClient(create_app(index, WebSettings()), base_url=HERE) as client:
        assert "keeps no shared images" in client.post("/api/shares", content=jpeg()).json()["error"]
