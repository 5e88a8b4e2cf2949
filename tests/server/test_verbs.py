"""The verbs of the package against a strict stand-in of each version: contract, ingest, query, regions, load, page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from mg_milvus import ImageIndex, QueryOptions
from mg_milvus.cli.app import app
from mg_milvus.ingest import refit
from mg_milvus.schema.models import Granularity, RegionSettings, Schema
from mg_milvus.web.app import create_app
from mg_milvus.web.security import WebSettings
from tests.conftest import make_photos
from tests.server.strict_proxy import VERSIONS, StrictProxy, strict_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = Schema(
    granularities=(Granularity(name="coarse", bits=32), Granularity(name="fine", bits=128)),
    regions=RegionSettings.model_validate({"bits": 128, "scales": [{"size": 0.5, "grid": 2}]}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images: enough to fit heads on a few of them."""
    return make_photos(tmp_path_factory.mktemp("verbs") / "photos", 10)


@pytest.fixture(scope="module", params=VERSIONS)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictProxy]:
    with strict_proxy(tmp_path_factory.mktemp("verbs") / "strict.db", request.param) as server:
        yield server


def test_every_verb(proxy: StrictProxy, folder: Path, tmp_path: Path) -> None:
    image = folder / "disc" / "03.jpg"
    with ImageIndex.open(proxy.uri, schema=SCHEMA) as index:
        assert index.ingest(folder).added == 30
        assert index.ingest(folder).unchanged == 30
        for options in (QueryOptions(), QueryOptions(fusion="server"), QueryOptions(regions="contains")):
            hits = index.query(image, k=5, **options)
            assert hits[0].path == str(image), options
            assert len(hits) == 5
        assert index.session.store.regions.count() == 30 * 4
        report = index.duplicates()
        assert (report.rows, len(report.groups)) == (30, 0)
        before, counted = index.fingerprint, index.tags()
        assert index.export(tmp_path / "codes").rows == 30
        assert index.refit("again").added == 30
        kept = {row.id: row.path for row in index.images()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(refit, "FEWEST_TO_FIT", 30)
            assert index.refit().added == 30
        assert {row.id: row.path for row in index.images()} == kept
        assert index.like(image, k=1)[0].id in kept
        assert index.session.store.collection == "images"

        with TestClient(create_app(index, WebSettings()), base_url="http://127.0.0.1:8000") as page:
            answer = page.post("/api/query?k=3", content=image.read_bytes()).json()
            assert answer["hits"][0]["path"] == str(image)
            assert page.get("/").status_code == 200

    with ImageIndex.open(proxy.uri, collection="again") as again:
        assert again.query(image, k=1)[0].path == str(image)
    with ImageIndex.open(proxy.uri, collection="loaded") as loaded:
        assert loaded.load(tmp_path / "codes").rows == 30
        assert (loaded.count(), loaded.fingerprint) == (30, before)
        assert loaded.query(image, k=1)[0].path == str(image)
        (tag, images), *_ = counted.items()
        assert loaded.tags() == counted
        assert loaded.count({"tags": tag}) == images
        assert [tag in hit.fields["tags"] for hit in loaded.query(text=tag, k=images)] == [True] * images
        assert loaded.delete([str(image)]) == 1
        assert loaded.count() == 29

    result = CliRunner().invoke(app, ["doctor", "--json", "--uri", proxy.uri, "--collection", "images"])
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    for name, says in (
        ("milvus", f"Milvus {proxy.label[1:]}"),
        ("collection", "30 rows"),
        ("search", "fine"),
        ("regions", "120"),
    ):
        assert checks[name]["ok"], checks[name]
        assert says in checks[name]["message"]
