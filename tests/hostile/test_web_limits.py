"""Bodies, uploads and filters of those who want to keep the page busy, or to make it grow."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import stat
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import anyio
import pytest

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi.testclient import TestClient

from mg_milvus.errors import FilterError
from mg_milvus.index import ImageIndex
from mg_milvus.web import limits
from mg_milvus.web.app import MAX_DUPLICATE_SEARCHES, MAX_HEALTH_CHECKS, create_app
from mg_milvus.web.limits import BodyBudget, BusyError, FilterQueue
from mg_milvus.web.security import WebSettings
from tests.conftest import kind_of_image
from tests.hostile.web_servers import in_thread
from tests.images import encoded
from tests.memory_filters import compile_filter
from tests.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HERE = "http://127.0.0.1:8000"


def jpeg(seed: int = 1) -> bytes:
    return encoded(kind_of_image("disc", seed), "JPEG", quality=92)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[TestClient]:
    settings = WebSettings(upload_folder=tmp_path / "uploads", max_upload_bytes=200_000)
    with ImageIndex.open("memory:") as index, TestClient(create_app(index, settings), base_url=HERE) as client:
        yield client


@pytest.fixture(scope="module")
def client(labelled_index: ImageIndex) -> Iterator[TestClient]:
    with TestClient(create_app(labelled_index, WebSettings()), base_url=HERE) as made:
        yield made


# Bodies


def multipart(parts: int) -> bytes:
    part = b'--x\r\ncontent-disposition: form-data; name="f"; filename="a.jpg"\r\n\r\nabc\r\n'
    return part * parts + b"--x--\r\n"


@pytest.mark.parametrize("path", ["/api/uploads?name=a.jpg", "/api/query", "/api/ingest", "/sign-in"])
def test_no_route_takes_multipart_apart(page: TestClient, path: str) -> None:
    """The bomb: thousands of parts. Nothing here reads multipart: it is no image, no JSON, no form."""
    headers = {"content-type": "multipart/form-data; boundary=x"}
    started = time.perf_counter()
    answer = page.post(path, content=multipart(2_000), headers=headers)
    assert answer.status_code in {401, 404, 413, 422}, answer.text
    assert time.perf_counter() - started < 30
    if path != "/sign-in":
        assert len(answer.text) < 1200


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"uploads":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 200_000,
        b'{"folder": "' + b"x" * 1_900_000 + b'"}',
        b'{"' + b"x" * 1_900_000 + b'": 1}',
        b'{"uploads": [' + b'"a",' * 300_000 + b'"a"]}',
        b'{"uploads": [1e999999, -Infinity, NaN]}',
        b'{"folder": ' + b"9" * 100_000 + b"}",
        b"\xff\xfe" * 1000,
    ],
)
def test_deep_and_huge_json_is_refused_in_one_short_sentence(page: TestClient, body: bytes) -> None:
    answer = page.post("/api/ingest", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}, answer.text[:200]
    assert (list(answer.json()), len(answer.text) < 1200) == (["error"], True)


def test_a_body_without_end_is_not_kept(page: TestClient) -> None:
    """No length is stated; before, all of it was read into memory."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 100_000
            yield b" " * 100_000

    json = {"content-type": "application/json"}
    answer = page.post("/api/ingest", content=endless(), headers=json)
    assert (answer.status_code, "2,000,000 bytes" in answer.json()["error"]) == (413, True)
    stated = page.post("/api/ingest", content=b"{}", headers=json | {"content-length": "2000001"})
    assert stated.status_code == 413


def test_messages_repeat_only_the_beginning_of_what_was_sent(client: TestClient) -> None:
    long = "x" * 15_000
    for answer in (
        client.get("/api/sample", params={"filter": f"{long} == 1"}),
        client.get("/api/query", params={"codes": long}),
        client.post("/api/query", params={"crop": long}, content=jpeg()),
        client.post("/api/query", params={"weights": long}, content=jpeg()),
        client.post("/api/query", params={"profile": long}, content=jpeg()),
        client.get(f"/api/images/{long}"),
        client.get("/api/info", headers={"host": long}),
        client.get(f"/{long}"),
    ):
        assert answer.status_code in {400, 404, 421, 422}, answer.text
        assert len(answer.text) < 1200


def test_messages_are_no_html(client: TestClient) -> None:
    answer = client.get("/api/sample", params={"filter": "<script>alert(1)</script> == 1"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert answer.headers["x-content-type-options"] == "nosniff"


# Uploads


def test_bodies_in_memory_are_counted() -> None:
    intake = BodyBudget(1000)
    with intake.body() as one:
        one.add(3000)
        with intake.body() as other:
            other.add(1000)
            with pytest.raises(BusyError, match="uploads of 4,000 bytes are under way already, at most 4,000"):
                other.add(1)
        with intake.body() as third:
            third.add(1000)
    bodies = [intake.body() for _ in range(limits.MAX_BODIES)]
    for body in bodies:
        body.__enter__()
    with pytest.raises(BusyError, match="256 uploads are under way already"), intake.body():
        pass
    for body in bodies:
        body.__exit__(None, None, None)
    with intake.body() as last:
        last.add(4000)


def test_ten_thousand_queued_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: so many bodies that begin and are not ended. Few are kept, the rest are told to come again."""
    monkeypatch.setattr(limits, "MAX_BODIES", 64)  # as the number of attackers, a quarter
    settings = WebSettings(upload_folder=tmp_path / "uploads", max_upload_bytes=1_000_000)
    with in_thread(settings) as (port, app):
        head = f"POST /api/uploads?name=a.jpg HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 900000\r\n\r\n"
        said = head.encode() + b"x" * 50_000
        kept, refused = [], 0
        tracemalloc.start()
        try:
            for _ in range(400):  # ten thousand would only take longer
                connection = socket.create_connection(("127.0.0.1", port), timeout=0.05 if len(kept) < 64 else PATIENCE)
                connection.sendall(said)
                try:
                    refused += connection.recv(12) == b"HTTP/1.1 503"
                    connection.close()
                except TimeoutError:
                    kept.append(connection)
            assert (len(kept), refused) == (64, 336)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 16_000_000
        finally:
            tracemalloc.stop()
            for connection in kept:
                connection.close()
        wait_until(lambda: not app.state.mgm.bodies._bytes, "all bodies are given up")
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            image = jpeg()
            connection.sendall(head.replace("900000", str(len(image))).encode() + image)
            assert connection.recv(12) == b"HTTP/1.1 200", "the places are given back"


def test_who_is_told_to_come_again_is_told_when(page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.app.state.mgm.bodies, "_most", 10)
    for path in ("/api/uploads?name=a.jpg", "/api/query"):
        answer = page.post(path, content=jpeg())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "try again" in answer.json()["error"]


@pytest.mark.parametrize(("limit", "value"), [("MAX_UPLOADS", 2), ("MAX_UPLOADED_BYTES", 4000)])
def test_the_folder_of_uploads_is_not_filled_without_end(
    page: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(limits, limit, value)
    answers = [page.post("/api/uploads?name=a.jpg", content=jpeg(seed)) for seed in range(8)]
    codes = [answer.status_code for answer in answers]
    assert codes == sorted(codes)
    assert (codes[0], codes[-1]) == (200, 507)
    assert "--upload-to" in answers[-1].json()["error"]
    assert len(list((tmp_path / "uploads").iterdir())) == codes.count(200)
    for file in (tmp_path / "uploads").iterdir():
        file.unlink()
    monkeypatch.setattr(limits, "RECOUNT_SECONDS", -1.0)
    assert page.post("/api/uploads?name=a.jpg", content=jpeg()).status_code == 200


def test_a_disk_that_is_nearly_full_takes_no_uploads(page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.post("/api/uploads?name=a.jpg", content=jpeg()).status_code == 200
    monkeypatch.setattr(limits, "MIN_FREE_BYTES", 10**18)
    answer = page.post("/api/uploads?name=a.jpg", content=jpeg(2))
    assert (answer.status_code, "free some" in answer.json()["error"]) == (507, True)


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/cron.d/x", "..", ".", "/etc/passwd", "\\\\server\\share\\x.jpg", "C:\\windows\\x.jpg", "a\0b.jpg",
        "CON", "con.jpg", "NUL.jpg", "COM1.jpg", ".bashrc", "-rf.jpg", "a" * 1000, "ä" * 1000, "x.php", "x.jpg.exe",
        "~root/x.jpg", "%2e%2e%2fx.jpg", "a\nb\r\nc.jpg", "\x1b[2J.jpg", "\u202egpj.exe", "😀.jpg", "a;b|c$(d)`e`", " ",
    ],
)  # fmt: skip
def test_uploads_get_harmless_names(page: TestClient, tmp_path: Path, name: str) -> None:
    answer = page.post("/api/uploads", params={"name": name}, content=jpeg())
    assert answer.status_code == 200, answer.text
    kept = tmp_path / "uploads" / answer.json()["upload"]
    assert kept.name.replace("-", "").replace(".", "").isalnum()
    assert (kept.suffix, kept.name[0].isalnum(), len(kept.name) < 100) == (".jpg", True, True)
    assert list((tmp_path / "uploads").iterdir()) == [kept]
    assert stat.S_ISREG(os.lstat(kept).st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["uploads"]


def test_a_name_that_is_too_long_is_refused(page: TestClient) -> None:
    assert page.post("/api/uploads", params={"name": "a" * 1001}, content=jpeg()).status_code == 422


# Searches


def test_searches_for_near_duplicates_do_not_queue_without_end(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = threading.Event()

    def held(*_: object, progress: Callable[..., None], **__: object) -> None:
        going.wait(PATIENCE)
        raise FilterError("let go")

    monkeypatch.setattr(ImageIndex, "duplicates", held)
    try:
        with ThreadPoolExecutor(MAX_DUPLICATE_SEARCHES) as pool:
            waiting = [pool.submit(client.get, "/api/duplicates") for _ in range(MAX_DUPLICATE_SEARCHES)]
            slots = client.app.state.mgm.duplicate_slots
            wait_until(lambda: slots._taken == MAX_DUPLICATE_SEARCHES, "all slots are taken")
            for path in ("/api/duplicates", "/api/duplicates/events"):
                answer = client.get(path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            going.set()
            assert {answer.result().status_code for answer in waiting} == {400}
    finally:
        going.set()
    assert client.app.state.mgm.duplicate_slots._taken == 0


def test_checks_that_anyone_may_ask_for_do_not_use_up_the_threads(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = threading.Event()
    count = ImageIndex.count

    def held(self: ImageIndex) -> int:
        going.wait(PATIENCE)
        return count(self)

    monkeypatch.setattr(ImageIndex, "count", held)
    try:
        with ThreadPoolExecutor(MAX_HEALTH_CHECKS) as pool:
            waiting = [pool.submit(client.get, "/health") for _ in range(MAX_HEALTH_CHECKS)]
            slots = client.app.state.mgm.health_slots
            wait_until(lambda: slots._taken == MAX_HEALTH_CHECKS, "all slots are taken")
            assert client.get("/health").status_code == 503
            assert client.get("/api/sample?count=1").status_code == 200
            going.set()
            assert {answer.result().status_code for answer in waiting} == {200}
    finally:
        going.set()


# Filters


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("number > 1" + " or number > 1" * 1000, "characters, the page takes 4,000"),
        ("number in [" + ",".join(map(str, range(600))) + "]", "lists 600 values, the page takes 500"),
        (" or ".join(['kind like "%a"'] * 11), "says 'like' 11 times"),
        ('kind like "%a%b"', "pattern '%a%b' has a % between other characters"),
        ('kind like "%' + "a_" * 250 + '%"', "more than 200 characters"),
        ("kind LIKE '" + "%a" * 50 + "'", "has a % between other characters"),
        ('kind == "x" or kind like\t"a%b"', "has a % between other characters"),
        ("(" * 500 + "number > 1" + ")" * 500, "at most 100 brackets"),
        ("not " * 500 + "(number > 1)", "at most 100 brackets and `not` within each other"),
        ("!" * 500 + "(number > 1)", "at most 100 brackets and `not` within each other"),
        ("number in " + "[" * 500, "at most 100 brackets"),
        ("number < " + "9" * 2000, "at most 100 digits"),
    ],
)
def test_filters_that_would_keep_milvus_busy_are_refused(client: TestClient, where: str, sentence: str) -> None:
    answers = [
        client.get("/api/sample", params={"filter": where}),
        client.post("/api/query", params={"filter": where}, content=jpeg()),
    ]
    for answer in answers:
        assert (answer.status_code, sentence in answer.json()["error"]) == (400, True), answer.text[:300]


def test_filters_that_people_write_are_taken(client: TestClient) -> None:
    for where in (
        'kind in ["disc", "stripes"] and not (number > 15)',
        'kind like "d%" and path like "%0%" and path like "%.jpg" and kind != "50% like a%b" and not (kind == "a%b")',
        "((number >= 1) and ((number <= 9) or (number != 12)))",
        "number in [" + ",".join(map(str, range(500))) + "]",
        " or ".join(f"number != {number}" for number in range(100)),
    ):
        answer = client.get("/api/sample", params={"filter": where})
        assert (answer.status_code, len(answer.json()) > 0) == (200, True), answer.text


def test_a_pattern_is_matched_in_no_time() -> None:
    """The attack: `.*a.*a.*a…` is tried in billions of ways, and nobody else gets the interpreter meanwhile."""
    matches = compile_filter('text like "' + "%a" * 30 + '%b"', {"text": "string"})
    started = time.perf_counter()
    assert not matches({"text": "a" * 3000})
    assert matches({"text": "a" * 3000 + "b"})
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("%", "", True), ("%%", "abc", True), ("", "", True), ("", "a", False), ("a", "a", True), ("a", "ab", False),
        ("a%", "a", True), ("a%", "ba", False), ("%a", "ba", True), ("%a", "ab", False), ("a%a", "a", False),
        ("a%a", "aa", True), ("a%b%c", "a-b-b-c", True), ("a%b%c", "acb", False), ("%ab%ab", "abab", True),
        ("%ab%ab", "aab", False), ("a_c", "abc", True), ("a_c", "ac", False), ("_%_", "a", False), ("_%_", "ab", True),
        ("%a_%b", "aab", True), ("%.%", "ab", False), ("%\u00e9%", "caf\u00e9s", True), ("%x%x", "x\nx", True),
    ],
)  # fmt: skip
def test_patterns_match_as_before(pattern: str, text: str, expected: bool) -> None:
    assert compile_filter(f'text like "{pattern}"', {"text": "string"})({"text": text}) is expected


def test_others_are_answered_while_filters_take_long(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred queries with a slow filter: two run, some wait, the rest are refused; nobody else waits for them."""
    going = threading.Event()
    sample = ImageIndex.sample

    def slow(self: ImageIndex, count: int, filter: str | None = None) -> object:  # noqa: A002
        if filter:
            going.wait(PATIENCE)
        return sample(self, count, filter)

    monkeypatch.setattr(ImageIndex, "sample", slow)
    try:
        with ThreadPoolExecutor(100) as pool:
            asked = [pool.submit(client.get, "/api/sample?filter=number<5&count=1") for _ in range(100)]
            refused = 100 - limits.FILTERS_WAITING
            wait_until(lambda: sum(answer.done() for answer in asked) >= refused, f"{refused} queries are refused")
            assert client.get("/api/sample?count=3").status_code == 200
            assert client.get("/health").status_code == 200
            assert client.post("/api/query?k=1", content=jpeg()).status_code == 200
            going.set()
            statuses = [answer.result().status_code for answer in asked]
    finally:
        going.set()
    assert (statuses.count(200), statuses.count(503)) == (limits.FILTERS_WAITING, 100 - limits.FILTERS_WAITING)


def test_a_filter_that_takes_too_long_is_given_up_but_keeps_its_place() -> None:
    async def attack() -> list[str]:
        going, running = threading.Event(), threading.Semaphore(0)
        filtering = FilterQueue(seconds=0.3)

        def slow() -> str:
            running.release()
            going.wait(PATIENCE)
            return "done"

        async def ask() -> str:
            try:
                return await filtering.run(slow)
            except BusyError as error:
                return str(error)

        first = await asyncio.gather(*(ask() for _ in range(10)))
        count = 0
        while running.acquire(blocking=False):
            count += 1
        assert count == limits.FILTERS_AT_ONCE, "those that were given up still run: no others are begun beside them"
        going.set()
        with anyio.fail_after(PATIENCE):
            while await ask() != "done":
                pass
        return first

    assert asyncio.run(attack()) == ["the filter took longer than 0 seconds: use a simpler one"] * 10
