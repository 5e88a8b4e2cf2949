"""The API under requests that nobody thought of: schemathesis draws them from the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
pytest.importorskip("schemathesis", reason="needs schemathesis: pip install -e '.[dev]'")
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis import checks

from mg_milvus.index import ImageIndex
from mg_milvus.web.app import create_app
from mg_milvus.web.security import WebSettings
from tests.conftest import make_photos

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = 12
"""Requests drawn for each operation, half of them against its description."""

WITHOUT_PARAMETERS = (
    "GET /api/info", "GET /health", "GET /metrics", "GET /api/ingest", "DELETE /api/ingest", "GET /api/ingest/events",
)  # fmt: skip
OPERATIONS = (
    *WITHOUT_PARAMETERS, "POST /api/query", "GET /api/query", "GET /api/sample", "GET /api/images/{id}",
    "DELETE /api/images/{id}", "GET /api/images/{id}/thumbnail", "GET /api/images/{id}/original",
    "POST /api/uploads", "POST /api/ingest", "GET /api/duplicates", "GET /api/duplicates/events",
    "POST /api/verify", "GET /api/verify", "POST /api/lists", "GET /api/lists/{name}", "POST /api/images/tag",
    "POST /api/images/delete", "POST /api/duplicates/move", "POST /api/duplicates/undo", "POST /api/duplicates/ignore",
    "GET /api/duplicates/moved", "GET /api/tags", "GET /api/values", "GET /api/spellings",
    "POST /api/shares", "GET /api/shares/{name}",
    "GET /api/images", "GET /api/clusters", "PUT /api/clusters/{key}",
)  # fmt: skip
HERE = {"Host": "127.0.0.1:8000"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    folder = tmp_path_factory.mktemp("drawn")
    settings = WebSettings(
        ingest_folders=(make_photos(folder / "photos", 1),), upload_folder=folder / "uploads",
        thumbnail_folder=folder / "thumbnails", share_folder=folder / "shares", max_upload_bytes=200_000,
    )  # fmt: skip
    with ImageIndex.open("memory:") as index:
        index.ingest(folder / "photos")
        yield schemathesis.openapi.from_asgi("/api/openapi.json", create_app(index, settings), headers=HERE)


def test_every_operation_is_asked(api: object) -> None:
    found = {result.ok().label for result in api.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_drawn_requests_are_answered_as_promised(api: object, label: str) -> None:
    method, path = label.split()
    operation = api[path][method]
    drawn = operation.as_strategy()
    if label not in WITHOUT_PARAMETERS:
        drawn = drawn | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

    @seed(1)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        data.draw(drawn).call_and_validate(
            headers=HERE,
            checks=[
                checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
                checks.response_schema_conformance,
            ],
        )  # fmt: skip

    ask()
