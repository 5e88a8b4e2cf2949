"""Reader, writer and owner with the rights of docs/server.md: enough, and each of them needed."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from pymilvus import MilvusClient

from mg_milvus import ImageIndex, MilvusConfig, doctor, errors
from mg_milvus.store.milvus import MilvusStore
from tests.server import rights
from tests.server.rights import SCHEMA, add_users, documented
from tests.server.strict_proxy import VERSIONS, StrictProxy, strict_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.server.strict_rights import Grant


@pytest.fixture(scope="module", params=VERSIONS)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictProxy]:
    with strict_proxy(tmp_path_factory.mktemp("rights") / "strict.db", request.param) as server:
        server.rights.passwords["root"] = "Milvus"
        with closing(MilvusClient(server.uri, token="root:Milvus")) as admin:
            add_users(admin, documented(), second=server.version >= (2, 5))
        with opened(server, "root", "Milvus") as store:
            rights.do("owner", store, SCHEMA)
        yield server


def opened(proxy: StrictProxy, user: str, password: str = "Passw0rd!") -> closing[MilvusStore]:
    return closing(MilvusStore(MilvusConfig(proxy.uri, f"{user}:{password}", "photos")))


def test_the_page_has_a_table() -> None:
    grants = documented()
    assert ("Search", "photos_regions") in grants["reader"]
    assert ("CreateCollection", "*") in grants["owner"] - grants["writer"]
    assert [len(grants[role]) for role in rights.ROLES] == [8, 13, 26]


@pytest.mark.parametrize("role", rights.ROLES)
def test_each_role_can_do_its_work(proxy: StrictProxy, role: str) -> None:
    with opened(proxy, role) as store:
        rights.do(role, store, SCHEMA)


def needed() -> list[tuple[str, Grant]]:
    """Every grant with the first role that has it; what Load brings along is needed by readers only."""
    grants = documented()
    new = {role: grants[role].difference(*(grants[r] for r in rights.ROLES[:n])) for n, role in enumerate(rights.ROLES)}
    return [(role, grant) for role in rights.ROLES for grant in sorted(new[role])]


@pytest.mark.parametrize("proxy", ["2.6.19"], indirect=True)  # which privilege a request needs is the same in all
@pytest.mark.parametrize(
    ("role", "grant"), needed(), ids=lambda each: each if isinstance(each, str) else ":".join(each)
)
def test_without_one_privilege_the_error_names_it(proxy: StrictProxy, role: str, grant: Grant) -> None:
    privilege, collection = grant
    named = f"who lacks the privilege {privilege} for " + (
        r"all collections, '\*'" if collection == "*" else f"'{collection}'"
    )
    own = proxy.rights.grants[role]
    own.remove(grant)
    try:
        with opened(proxy, role) as store, pytest.raises(errors.PrivilegeError, match=named):
            rights.do(role, store, SCHEMA)
    finally:
        own.add(grant)
        with opened(proxy, "root", "Milvus") as store:
            rights.do("owner", store, SCHEMA)


def test_a_wrong_password_and_no_rights_are_told_apart(proxy: StrictProxy) -> None:
    with pytest.raises(errors.AuthenticationError, match="refused the token") as caught, opened(proxy, "reader", "no"):
        pass
    assert not isinstance(caught.value, errors.PrivilegeError)


@pytest.mark.parametrize("proxy", ["2.6.19"], indirect=True)
@pytest.mark.parametrize(
    ("grant", "check"),
    [
        (("Search", "photos"), "search"),
        (("Search", "photos_regions"), "search"),
        (("Query", "photos_encoder"), "collection"),
    ],
)
def test_the_doctor_names_what_a_reader_lacks(
    proxy: StrictProxy, grant: Grant, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mg_milvus.doctor._encoder", lambda _device: doctor.Check("encoder", True, "not of interest"))
    own = proxy.rights.grants["reader"]
    own.remove(grant)
    try:
        config = MilvusConfig(proxy.uri, "reader:Passw0rd!", "photos", timeout=20)
        found = next(each for each in doctor.examine(config) if each.name == check)
    finally:
        own.add(grant)
    assert not found.ok
    assert f"lacks the privilege {grant[0]} for '{grant[1]}'" in found.message
    assert "granted" in found.remedy


def test_an_index_says_it_too(proxy: StrictProxy) -> None:
    with (
        ImageIndex.open(proxy.uri, collection="photos", token="reader:Passw0rd!") as index,
        pytest.raises(errors.PrivilegeError, match="Delete for 'photos"),
    ):
        index.delete([rights.rows(SCHEMA)[1].id])


@pytest.mark.parametrize("proxy", ["2.6.19"], indirect=True)
def test_a_reader_waits_for_the_load_of_another_and_names_the_privilege_to_load(proxy: StrictProxy) -> None:
    with closing(MilvusClient(proxy.uri, token="root:Milvus")) as admin:
        admin.release_collection("photos")
        with (
            opened(proxy, "reader") as store,
            pytest.raises(errors.PrivilegeError, match="privilege Load for 'photos'"),
        ):
            store.count()
        proxy.load_seconds = 0.5
        admin._get_connection().load_collection("photos", _async=True)
        with opened(proxy, "reader") as store:
            assert store.count() == 3
        proxy.load_seconds = 0.0


@pytest.mark.parametrize("proxy", ["2.5.27", "2.6.19", "3.0.0"], indirect=True)
def test_the_lines_of_the_page_make_a_reader(proxy: StrictProxy) -> None:
    blocks = re.findall(r"```python\n(.*?)```", rights.PAGE.read_text("utf-8"), re.DOTALL)
    (lines,) = (block for block in blocks if "photos_reader" in block)
    exec(lines.replace("http://127.0.0.1:19530", proxy.uri), {})
    with opened(proxy, "ann", "a password") as store:
        rights.read(store, SCHEMA)
