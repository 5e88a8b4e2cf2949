"""``mgm doctor --conformance``: what it reports of Milvus Lite and of strict stand-ins, and that nothing is left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pymilvus import MilvusClient
from typer.testing import CliRunner

from mg_milvus import Conformance, Feature, MilvusConfig, conformance, errors
from mg_milvus.cli.app import app
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description
from mg_milvus.store.milvus import MilvusStore
from tests.server.strict_proxy import INVALID, VERSIONS, Refusal, StrictProxy, strict_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WEIGHTS, HNSW = "server fusion, other weights", "index HNSW"
REFUSED = {
    "2.4.14": {WEIGHTS, HNSW}, "2.5.27": {WEIGHTS, HNSW}, "2.6.19": {WEIGHTS}, "3.0.0": {WEIGHTS}, "3.0.1": set(),
}  # fmt: skip
ON_LITE = {
    WEIGHTS, HNSW, "alias", "index BIN_IVF_FLAT", "codes mapped from disk", "2 shards", "partition key",
}  # fmt: skip


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[StrictProxy]:
    with strict_proxy(tmp_path / "strict.db", "2.6.19") as server:
        yield server


def outcomes(report: Conformance) -> dict[str, str]:
    return {feature.name: feature.outcome for feature in report.features}


def collections_of(proxy: StrictProxy) -> list[str]:
    client = MilvusClient(proxy.uri)
    try:
        return sorted(client.list_collections())
    finally:
        client.close()


@pytest.mark.parametrize("version", [*VERSIONS, "3.0.1"])
def test_every_feature_of_every_version(version: str, tmp_path: Path) -> None:
    with strict_proxy(tmp_path / "strict.db", version) as proxy:
        store = MilvusStore(MilvusConfig(proxy.uri, collection="of_another"))
        store.create(Description(Schema(), "f" * 16))
        store.close()
        report = conformance(MilvusConfig(proxy.uri, collection="of_another"))
        assert collections_of(proxy) == ["of_another"]
    assert report.server == f"Milvus {version}"
    assert report.ok
    assert len(report.features) == 25
    assert {name for name, outcome in outcomes(report).items() if outcome == "refused"} == REFUSED[version]
    assert set(outcomes(report).values()) <= {"works", "refused"}


def test_milvus_lite_without_a_file(tmp_path: Path) -> None:
    report = conformance(MilvusConfig(str(tmp_path / "none.db")))
    assert report.ok
    assert {name for name, outcome in outcomes(report).items() if outcome == "refused"} == ON_LITE
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_result_is_found(proxy: StrictProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    search = proxy._search

    def one_bit_off(request: object) -> object:
        response = search(request)
        if response.results.scores:
            response.results.scores[0] += 1
        return response

    monkeypatch.setattr(proxy, "_search", one_bit_off)
    report = conformance(MilvusConfig(proxy.uri))
    failed = {feature.name: feature.message for feature in report.features if feature.outcome == "fails"}
    assert "search" in failed
    assert failed["search"].startswith("distances on coarse: [")
    assert "fetch and scan" not in failed
    assert not report.ok
    assert collections_of(proxy) == []


def test_what_cannot_be_created_leaves_the_rest_untried(proxy: StrictProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_field: object) -> None:
        raise Refusal(INVALID, "no more collections here")

    monkeypatch.setattr(proxy, "_check_field", refuse)
    report = conformance(MilvusConfig(proxy.uri))
    create, rest = report.features[1], report.features[2:]
    assert (create.name, create.outcome) == ("create and describe", "fails")
    assert "no more collections here" in create.message
    assert {(each.outcome, each.message) for each in rest} == {("not tried", "'create and describe' does not work")}


def stop_at(name: str, action: Callable[[], object]) -> Callable[[Feature], None]:
    def progress(feature: Feature) -> None:
        if feature.name == name:
            action()

    return progress


def test_an_interrupt_leaves_nothing(proxy: StrictProxy) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for name in ("create and describe", "stored encoder", "partition key"):
        with pytest.raises(KeyboardInterrupt):
            conformance(MilvusConfig(proxy.uri), stop_at(name, interrupt))
        assert collections_of(proxy) == []


def test_a_server_that_goes_away_is_named_with_what_is_left_there(proxy: StrictProxy) -> None:
    report = conformance(MilvusConfig(proxy.uri, timeout=3), stop_at("search", proxy.stop))
    after = report.features[4:]
    assert (after[0].name, after[0].outcome) == ("codes with a search", "fails")
    assert {(each.outcome, each.message) for each in after[1:]} == {
        ("not tried", "the server went away during 'codes with a search'")
    }
    (left,) = report.left
    proxy.start()
    assert left in collections_of(proxy)
    again = conformance(MilvusConfig(proxy.uri))  # another run's collections are named, and stay
    assert left in again.left
    assert not again.ok
    assert left in collections_of(proxy)


def test_no_server_is_an_error() -> None:
    with pytest.raises(errors.StoreUnavailableError, match=r"127\.0\.0\.1:9"):
        conformance(MilvusConfig("http://127.0.0.1:9", timeout=0.5))


def test_the_command(proxy: StrictProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["doctor", "--conformance", "--uri", proxy.uri]
    result = CliRunner().invoke(app, command)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.output
    assert lines[0].split() == ["several", "granularities", "works", "2", "in", "a", "collection"]
    assert next(line for line in lines if line.startswith(WEIGHTS)).split()[4:6] == ["refused", "Milvus"]
    assert lines[-2].startswith("Milvus 2.6.19; mg-milvus ")
    assert lines[-1] == "24 works, 1 refused"

    def refuse(_request: object) -> None:
        raise Refusal(INVALID, "no aliases today")

    monkeypatch.setattr(proxy, "_create_alias", refuse)
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["ok"], report["server"], report["left"]) == (False, "Milvus 2.6.19", [])
    (failed,) = [each for each in report["features"] if each["outcome"] == "fails"]
    assert failed["name"] == "alias"
    assert "no aliases today" in failed["message"]
    assert proxy.uri not in json.dumps({**report, "features": []})

    assert CliRunner().invoke(app, [*command, "--repair"]).exit_code == 2
