"""Tokens, sessions and measures under attack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from tests.waiting import PATIENCE

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi.testclient import TestClient

from mg_milvus.errors import ServeError
from mg_milvus.web import security
from mg_milvus.web.app import create_app
from mg_milvus.web.security import Attempts, Sessions, WebSettings, check_address
from tests.hostile.web_servers import TOKEN, mgm_serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mg_milvus.index import ImageIndex

SITE = "http://photos.example"


@pytest.fixture
def visit(labelled_index: ImageIndex) -> Iterator[Callable[..., TestClient]]:
    """Makes visitors of one server, each with cookies of its own."""
    app = create_app(labelled_index, WebSettings(token=TOKEN))
    with TestClient(app):

        def visitor(address: str = "192.0.2.1", base: str = SITE) -> TestClient:
            return TestClient(app, base_url=base, client=(address, 50_000), follow_redirects=False)

        yield visitor


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Measures


def test_invented_methods_do_not_grow_the_measures(visit: Callable[..., TestClient]) -> None:
    """The attack: 1,500 methods without a token made /metrics 3.1 MB long."""
    client = visit()
    for number in range(1500):
        client.request(f"{'X' * 1000}{number}", "/api/info")
    for number in range(50):
        client.get(f"/nowhere/{number}")
    metrics = client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    assert len(metrics) < 10_000
    assert 'mgm_requests_total{method="other",route="other",status="401"} 1500' in metrics
    assert 'mgm_requests_total{method="GET",route="other",status="401"} 50' in metrics


def test_every_label_of_the_measures_is_of_a_fixed_list(visit: Callable[..., TestClient]) -> None:
    client = visit()
    signed_in = {"authorization": f"Bearer {TOKEN}"}
    for number in range(50):
        for path in (f"/api/images/{number:032x}", f"/static/{number}.js", f"/{number}", f"/api/query?id={number}"):
            client.request("GET" if number % 2 else f"M{number}", path, headers=signed_in)
    metrics = client.get("/metrics", headers=signed_in).text
    routes = set(re.findall(r'route="([^"]*)"', metrics))
    assert routes <= {"other", "/api/images/{id}", "/api/query", "/static"}, routes
    assert set(re.findall(r'method="([^"]*)"', metrics)) <= {"GET", "other"}


def test_the_measures_need_the_token(visit: Callable[..., TestClient]) -> None:
    assert visit().get("/metrics").status_code == 401


# Guessing


def wrong(client: TestClient, number: int) -> int:
    return client.get("/api/info", headers={"authorization": f"Bearer wrong-{number}"}).status_code


def test_five_hundred_wrong_tokens_are_not_listened_to(visit: Callable[..., TestClient]) -> None:
    """The attack: 500 guesses a minute were all compared."""
    attacker = visit("203.0.113.5")
    answers = [wrong(attacker, number) for number in range(500)]
    compared = answers.count(401)
    assert (compared + answers.count(429), compared <= 5 + 6 * 10) == (500, True)
    refused = attacker.get("/api/info", headers={"authorization": f"Bearer {TOKEN}"})
    assert refused.status_code == 429, "the right one is not compared either"
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert "try again in" in refused.json()["error"]


@pytest.mark.parametrize("way", ["bearer", "link", "form"])
def test_every_way_to_show_a_token_is_slowed_down(visit: Callable[..., TestClient], way: str) -> None:
    client = visit("203.0.113.6")

    def guess(number: int) -> object:
        if way == "bearer":
            return client.get("/api/info", headers={"authorization": f"bearer wrong-{number}"})
        if way == "link":
            return client.get(f"/?token=wrong-{number}")
        return client.post("/sign-in", data={"token": f"wrong-{number}"})

    answers = [guess(number) for number in range(8)]
    assert [answer.status_code for answer in answers[:5]] == [401] * 5
    assert (answers[-1].status_code, int(answers[-1].headers["retry-after"]) > 0) == (429, True)


def test_who_has_signed_in_goes_on_while_others_guess(visit: Callable[..., TestClient]) -> None:
    """Also from the address of the attacker, as behind a proxy."""
    friend = visit("203.0.113.7")
    assert friend.post("/sign-in", data={"token": TOKEN}).status_code == 303
    attacker = visit("203.0.113.7")
    assert [wrong(attacker, number) for number in range(20)][-1] == 429
    assert friend.get("/api/info").status_code == 200
    assert friend.get("/").status_code == 200


def test_guesses_from_many_addresses_are_slowed_down_together(visit: Callable[..., TestClient]) -> None:
    program = visit("198.51.100.1")
    signed = {"authorization": f"Bearer {TOKEN}"}
    assert program.get("/api/info", headers=signed).status_code == 200
    answers = [wrong(visit(f"203.0.{number // 250}.{number % 250}"), number) for number in range(400)]
    assert 50 <= answers.count(401) < 200
    assert answers.count(429) > 200
    assert program.get("/api/info", headers=signed).status_code == 200, "it has shown the right one before"


def test_what_shows_no_token_is_no_guess(visit: Callable[..., TestClient]) -> None:
    client = visit("203.0.113.9")
    client.cookies.set("mgm_session_80", "of a server that has ended")
    assert {client.get("/api/info").status_code for _ in range(30)} == {401}
    assert client.post("/sign-in", data={"token": TOKEN}).status_code == 303


def test_attempts_come_back_with_time() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(5):
        assert attempts.wait("a") == 0
        attempts.failed("a")
    assert attempts.wait("a") == pytest.approx(10)
    assert attempts.wait("b") == 0
    clock.now += 9
    assert attempts.wait("a") == pytest.approx(1)
    clock.now += 1
    assert attempts.wait("a") == 0
    attempts.failed("a")
    assert attempts.wait("a") == pytest.approx(10)


def test_the_table_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_ADDRESSES", 100)
    clock = Clock()
    attempts = Attempts(clock)
    for number in range(1000):
        attempts.failed(f"203.0.{number // 250}.{number % 250}")
        attempts.succeeded(f"198.51.{number // 250}.{number % 250}")
        attempts.failed(f"{number}" * 1000)
    assert (len(attempts._failing), len(attempts._known)) == (100, 100)
    assert max(map(len, attempts._failing)) <= 64
    assert attempts.wait("203.0.9.9") > 0, "who comes from a new address is held up by all failures together"


def test_one_customer_of_ipv6_is_one_address() -> None:
    attempts = Attempts(Clock())
    for number in range(5):
        attempts.failed(f"2001:db8:0:1::{number}")
    assert attempts.wait("2001:db8:0:1:ffff::1") > 0
    assert attempts.wait("2001:db8:0:2::1") == 0


# Tokens


@pytest.mark.parametrize(
    "token",
    [
        "aaaaaaaaaaaa", "a" * 40, "abababababababab", "abcabcabcabcabc", "123456789012", "letmein-letmein",
        "abcdefghijklmnop", "zyxwvutsrqponmlk", "passwordpassword", "Passw0rd1234", "P@$$w0rd-2024", "changemechangeme",
        "qwertyuiop12", "qwertyuiopasdfghjkl", "1q2w3e4r5t6z", "adminadminadmin", "minioadminminioadmin",
        "correct horse battery staple", "31415926535897", "secret-token-1", "milvus-password", "mgm-mgm-mgm-mgm",
        "            ", "short", "päßwort-päßwort", "line\nbreak-in-token",
    ],
)  # fmt: skip
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(ServeError, match="make one with python") as caught:
        check_address("127.0.0.1", token)
    assert token not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "token",
    [
        TOKEN,
        "correct horse battery",
        "xK93-vbQ2-mm7T",
        "9f86d081884c7d65",
        "kartoffel-lampe-wolke",
        "53 0183 7742 9160 2258",
    ],
)
def test_good_tokens_are_taken(token: str) -> None:
    check_address("0.0.0.0", token)


def test_a_weak_token_from_the_environment_is_refused_too(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mg_milvus", "serve", "--uri", "index.db", "--port", "0"],
        cwd=tmp_path, env=os.environ | {"MGM_WEB_TOKEN": "aaaaaaaaaaaa"}, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "guessed easily" in result.stderr
    assert "aaaaaaaaaaaa" not in result.stderr


# Sessions


def session_of(client: TestClient) -> str:
    return next(value for name, value in client.cookies.items() if "mgm_session" in name)


def test_the_cookie_is_no_token_and_new_each_time(visit: Callable[..., TestClient]) -> None:
    """The attack: the cookie was the token itself, for 30 days."""
    client = visit()
    answer = client.post("/sign-in", data={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    first = session_of(client)
    assert TOKEN not in str(answer.headers)
    assert re.fullmatch(r"mgm_session_80=[\w-]{43}; HttpOnly; Path=/; SameSite=lax", cookie), cookie
    client.post("/sign-in", data={"token": TOKEN})
    second = session_of(client)
    assert first != second
    old = visit()
    old.cookies.set("mgm_session_80", first)
    assert old.get("/api/info").status_code == 401, "signing in anew ends what was there before"


def test_an_id_that_was_set_by_someone_else_is_never_a_session(visit: Callable[..., TestClient]) -> None:
    planted = "A" * 43
    victim = visit()
    victim.cookies.set("mgm_session_80", planted, domain="photos.example")
    victim.post("/sign-in", data={"token": TOKEN})
    attacker = visit()
    attacker.cookies.set("mgm_session_80", planted)
    assert attacker.get("/api/info").status_code == 401


def test_servers_on_other_ports_have_cookies_of_their_own(visit: Callable[..., TestClient]) -> None:
    one, other = visit(base="http://localhost:8001"), visit(base="http://localhost:8002")
    assert one.post("/sign-in", data={"token": TOKEN}).headers["set-cookie"].startswith("mgm_session_8001=")
    assert other.post("/sign-in", data={"token": TOKEN}).headers["set-cookie"].startswith("mgm_session_8002=")


def test_behind_tls_the_cookie_never_goes_without(visit: Callable[..., TestClient]) -> None:
    client = visit(base="https://photos.example")
    cookie = client.post("/sign-in", data={"token": TOKEN}).headers["set-cookie"]
    assert re.fullmatch(r"__Host-mgm_session_443=[\w-]{43}; HttpOnly; Path=/; SameSite=lax; Secure", cookie), cookie
    assert client.get("/api/info").status_code == 200
    plain = visit(base="https://photos.example")
    plain.cookies.set("mgm_session_443", session_of(client))
    assert plain.get("/api/info").status_code == 401, "a cookie that plain HTTP could have set"


def test_a_proxy_on_this_machine_says_that_there_is_tls(tmp_path: Path) -> None:
    with mgm_serve(tmp_path, MGM_WEB_TOKEN=TOKEN) as served:
        for proxied, prefix in ((None, "mgm_session_"), ("http", "mgm_session_"), ("https", "__Host-mgm_session_")):
            connection = HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
            connection.request(
                "POST", "/sign-in", f"token={TOKEN}", {"X-Forwarded-Proto": proxied} if proxied else {}
            )  # fmt: skip
            answer = connection.getresponse()
            cookie = answer.headers["set-cookie"]
            connection.close()
            assert (answer.status, cookie.startswith(f"{prefix}{served.port}=")) == (303, True)
            assert ("Secure" in cookie) == (proxied == "https")


def test_signing_out_ends_the_session_on_the_server(visit: Callable[..., TestClient]) -> None:
    client = visit()
    client.post("/sign-in", data={"token": TOKEN})
    kept = session_of(client)
    assert 'action="sign-out"' in client.get("/").text
    answer = client.post("/sign-out", headers={"origin": SITE})
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    assert 'mgm_session_80=""' in answer.headers["set-cookie"]
    assert answer.headers["clear-site-data"] == '"cache"'
    thief = visit()
    thief.cookies.set("mgm_session_80", kept)
    assert thief.get("/api/info").status_code == 401


def test_other_sites_cannot_sign_out_or_in(visit: Callable[..., TestClient]) -> None:
    client = visit()
    client.post("/sign-in", data={"token": TOKEN})
    foreign = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    assert client.post("/sign-out", headers=foreign).status_code == 403
    assert client.get("/sign-out").status_code == 405
    assert client.post("/sign-in", data={"token": TOKEN}, headers=foreign).status_code == 403
    assert client.get("/api/info").status_code == 200


def test_without_a_token_there_is_nothing_to_sign_out_of(labelled_index: ImageIndex) -> None:
    with TestClient(create_app(labelled_index, WebSettings()), base_url="http://127.0.0.1:8000") as client:
        assert "sign-out" not in client.get("/").text
        assert client.post("/sign-in", data={"token": ""}).status_code == 401


def test_sessions_end() -> None:
    clock = Clock()
    table = Sessions(clock)
    idle, used = table.begin(), table.begin()
    for _ in range(13):  # hours
        assert table.holds(used)
        clock.now += 3600
    assert not table.holds(idle)
    assert table.holds(used)
    for _ in range(7 * 24 - 13):
        assert table.holds(used)
        clock.now += 3600
    clock.now += 1
    assert not table.holds(used), "seven days, however much it is used"
    assert not table.holds("")


def test_the_table_of_sessions_is_bounded_and_holds_no_ids() -> None:
    table = Sessions(Clock())
    first = table.begin()
    used = table.begin()
    for _ in range(security.MAX_SESSIONS):
        table.begin()
        assert table.holds(used)
    assert len(table._sessions) == security.MAX_SESSIONS
    assert not table.holds(first)
    assert used not in repr(vars(table))


def test_the_link_with_the_token_leaves_nothing_behind(visit: Callable[..., TestClient]) -> None:
    client = visit()
    answer = client.get(f"/?token={TOKEN}&id=x&id=y")
    assert (answer.status_code, answer.headers["location"]) == (303, "./?id=x&id=y")
    assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")
    again = client.get(f"/?token={TOKEN}&id=x")  # from a bookmark, by who has signed in
    assert (again.status_code, again.headers["location"], "set-cookie" in again.headers) == (303, "./?id=x", False)
    assert TOKEN not in client.get("/").text
