"""``--allow-ingest``: a visitor gets nothing into the index that does not lie in the folder that was allowed."""

from __future__ import annotations

import json
import os
import unicodedata
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi.testclient import TestClient

from mg_milvus.images.discover import Rules, discover
from mg_milvus.index import ImageIndex
from mg_milvus.web.app import create_app
from mg_milvus.web.security import WebSettings
from tests.conftest import make_photos

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mg_milvus.records import Failure

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """A folder of six images, beside a secret one of three."""
    make_photos(tmp_path / "secret", per_kind=1)
    make_photos(tmp_path / "allowed-not", per_kind=1)
    return make_photos(tmp_path / "allowed", per_kind=2)


@pytest.fixture
def page(allowed: Path) -> Iterator[tuple[TestClient, ImageIndex]]:
    settings = WebSettings(ingest_folders=(allowed,), upload_folder=allowed.with_name("uploads"))
    with ImageIndex.open("memory:") as index, TestClient(create_app(index, settings), base_url=HERE) as client:
        yield client, index


def ingest(client: TestClient, folder: Path | str) -> dict:
    """The report of an ingest."""
    answer = client.post("/api/ingest", json={"folder": str(folder)})
    assert answer.status_code == 202, answer.text
    last = client.get("/api/ingest/events").text.strip().splitlines()[-1]
    job = json.loads(last.removeprefix("data: "))
    assert job["state"] == "done", job
    return job["report"]


def paths(index: ImageIndex) -> list[str]:
    return sorted(row.path for batch in index.session.store.scan(None) for row in batch)


@pytest.mark.parametrize(
    "asked",
    [
        "{}/../secret", "{}/disc/../../secret", "{}/..", "{}/./.././secret", "{}/disc/../..", "{}-not",
        "/", "//", "/.", "", ".", "..", "~", "{}\0", "{}/\0/../../secret", "file://{}/../secret", "{}/../allowed-not",
        "file://{}/%2e%2e/secret", "{}/%2e%2e/secret", "{}\\..\\secret", "{}/disc/" + "../" * 40, "/proc/self/cwd/..",
        "/proc/self/root", "/dev/fd/0", "{}/\u2025/secret", "{}/\uff0e\uff0e/secret", "{}/nowhere/../../secret",
        "{}/" + "a" * 300 + "/../../secret", "a" * 100_000, "{}\n", "{} ", "\ud800",
    ],
)  # fmt: skip
def test_no_way_to_write_a_path_leads_out(page: tuple[TestClient, ImageIndex], allowed: Path, asked: str) -> None:
    client, index = page
    content = json.dumps({"folder": asked.format(allowed)})
    answer = client.post("/api/ingest", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}, answer.text
    assert (list(answer.json()), len(answer.text) < 1500) == (["error"], True)
    assert client.get("/api/ingest").status_code == 404, "nothing was begun"
    assert index.exists is False


@pytest.mark.parametrize("asked", ["{}", "{}/", "{}//disc/../disc", "/{}", "{}/disc/..", "{}/../allowed", "file://{}"])
def test_ways_to_write_what_is_allowed(page: tuple[TestClient, ImageIndex], allowed: Path, asked: str) -> None:
    client, index = page
    ingest(client, asked.format(allowed))
    assert index.count() in {2, 6}


def test_another_normal_form_of_a_name_is_another_folder(page: tuple[TestClient, ImageIndex], allowed: Path) -> None:
    client, _ = page
    make_photos(allowed / "caf\u00e9", per_kind=1)
    ingest(client, allowed / "caf\u00e9")
    answer = client.post("/api/ingest", json={"folder": unicodedata.normalize("NFD", f"{allowed}/caf\u00e9")})
    assert answer.status_code in {400, 202}  # a file system may take both for one: it lies inside either way


def test_links_inside_do_not_let_anything_in_from_outside(page: tuple[TestClient, ImageIndex], allowed: Path) -> None:
    """The attack: a link to a folder, or to a file, in a folder that may be ingested."""
    client, index = page
    secret = allowed.with_name("secret")
    (allowed / "way out").symlink_to(secret)
    (allowed / "relative").symlink_to("../secret/disc")
    (allowed / "chain").symlink_to(allowed / "way out")
    (allowed / "disc" / "file.jpg").symlink_to(secret / "disc" / "00.jpg")
    (allowed / "up").symlink_to("..")
    (allowed / "root").symlink_to("/")
    (allowed / "not").symlink_to(allowed.with_name("allowed-not"))
    report = ingest(client, allowed)
    assert paths(index) == sorted(str(path) for path in allowed.glob("*/0?.jpg") if not path.parent.is_symlink())
    assert (report["added"], report["failed"]) == (6, 7)
    assert {failure["path"] for failure in report["failures"]} == {
        str(allowed / name) for name in ("way out", "relative", "chain", "disc/file.jpg", "up", "root", "not")
    }
    assert all("leads out of" in failure["reason"] for failure in report["failures"])


def test_links_that_stay_inside_are_followed(page: tuple[TestClient, ImageIndex], allowed: Path) -> None:
    client, index = page
    (allowed / "also").symlink_to(allowed / "disc")
    (allowed / "blocks" / "also.jpg").symlink_to(allowed / "disc" / "00.jpg")
    report = ingest(client, allowed)
    assert (report["failed"], index.count()) == (0, 7)


def test_a_link_that_leads_out_is_no_folder_to_ask_for(page: tuple[TestClient, ImageIndex], allowed: Path) -> None:
    client, _ = page
    (allowed / "way out").symlink_to(allowed.with_name("secret"))
    answer = client.post("/api/ingest", json={"folder": str(allowed / "way out")})
    assert (answer.status_code, "may not be ingested" in answer.json()["error"]) == (400, True)


def test_a_folder_that_becomes_a_link_between_the_check_and_the_walk(
    page: tuple[TestClient, ImageIndex], allowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, index = page
    asked = allowed / "disc"
    original = ImageIndex.ingest

    def swapped(self: ImageIndex, *sources: Path, **options: object) -> object:
        asked.rename(allowed / "was-disc")
        asked.symlink_to(allowed.with_name("secret"))
        return original(self, *sources, **options)

    monkeypatch.setattr(ImageIndex, "ingest", swapped)
    client.post("/api/ingest", json={"folder": str(asked)})
    job = json.loads(client.get("/api/ingest/events").text.strip().splitlines()[-1].removeprefix("data: "))
    assert "leads out of" in json.dumps(job)
    assert index.exists is False or index.count() == 0


def test_a_folder_that_becomes_a_link_while_it_is_walked(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Failure] = []
    found = discover([allowed], failures.append, Rules(inside=allowed))
    first = next(found)
    (allowed / "stripes").rename(allowed.with_name("moved"))
    (allowed / "stripes").symlink_to(allowed.with_name("secret"))
    rest = [each.path for each in found]
    assert all(os.path.realpath(path).startswith(f"{allowed}/") for path in [first.path, *rest])
    assert [failure.path for failure in failures] == [str(allowed / "stripes")]


def test_uploads_that_became_links_are_not_ingested(page: tuple[TestClient, ImageIndex], allowed: Path) -> None:
    client, index = page
    kept = client.post("/api/uploads?name=a.jpg", content=(allowed / "disc" / "00.jpg").read_bytes()).json()["upload"]
    upload = allowed.with_name("uploads") / kept
    upload.unlink()
    upload.symlink_to(allowed.with_name("secret") / "disc" / "00.jpg")
    client.post("/api/ingest", json={"uploads": [kept]})
    assert "leads out of" in client.get("/api/ingest/events").text
    assert index.exists is False or index.count() == 0


def test_a_walk_that_nobody_limits_follows_links_as_before(allowed: Path) -> None:
    (allowed / "way out").symlink_to(allowed.with_name("secret"))
    failures: list[Failure] = []
    assert len(list(discover([allowed], failures.append))) == 9
    assert failures == []
