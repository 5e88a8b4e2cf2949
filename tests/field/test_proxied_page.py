"""The page under a path of another server's, as reverse proxies serve it: with the path left in, or taken away."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

import pytest

from mg_milvus.web.security import WebSettings
from tests.hostile.web_servers import TOKEN, in_thread
from tests.images import encoded, image
from tests.waiting import PATIENCE

ROOT = "/photos/of-mine"
LINKS = re.compile(rb"""\b(?:href|src|action)=["']([^"'#]+)["']|\bfrom ["']([^"']+)["']|import\(["']([^"']+)["']\)""")


class ReverseProxy(ThreadingHTTPServer):
    """Passes what is under ``ROOT`` on to another port; all else is not found."""

    daemon_threads = True

    def __init__(self, port: int, *, strips: bool) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.port, self.strips = port, strips


class Passing(BaseHTTPRequestHandler):
    """One request that is passed on, as nginx does with ``proxy_set_header Host $http_host``."""

    server: ReverseProxy

    def _pass_on(self) -> None:
        if self.path != ROOT and not self.path.startswith(f"{ROOT}/"):
            self.send_error(404, "outside of the page")
            return
        if self.path == ROOT and self.server.strips:  # nginx does that itself
            self.send_response(301)
            self.send_header("location", f"{ROOT}/")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        path = self.path.removeprefix(ROOT) if self.server.strips else self.path
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        upstream.request(self.command, path or "/", body or None, dict(self.headers))
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in {"transfer-encoding", "content-length", "date", "server"}:
                self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        with contextlib.suppress(ConnectionError):  # a browser goes away while images are on their way
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Browser:
    """Follows redirects, keeps cookies, and remembers every address it was sent to."""

    def __init__(self, top: str) -> None:
        self.top = top
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar())
        )

    def open(self, address: str, data: bytes | None = None, **headers: str) -> tuple[int, str, bytes]:
        """Status, address in the end, and content."""
        request = urllib.request.Request(urljoin(self.top, address), data, headers)
        try:
            with self._opener.open(request, timeout=PATIENCE) as response:
                return response.status, response.url, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.url, error.read()


@pytest.fixture(scope="module", params=["the path is left in", "the path is taken away"])
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    uploads: Path = tmp_path_factory.mktemp("proxied") / "uploads"
    settings = WebSettings(token=TOKEN, root_path=ROOT, upload_folder=uploads)
    with in_thread(settings) as (port, _), ReverseProxy(port, strips="away" in request.param) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        made = Browser(f"http://127.0.0.1:{proxy.server_address[1]}{ROOT}/")
        status, address, content = made.open("./?q=1")
        assert status == 401
        assert b"token" in content
        status, address, _ = made.open("sign-in", urlencode({"token": TOKEN}).encode())
        assert (status, address) == (200, made.top)
        yield made
        proxy.shutdown()
        thread.join()


@pytest.mark.parametrize("page", ["./", "duplicates", "docs"])
def test_every_link_of_a_page_leads_to_something_under_its_path(browser: Browser, page: str) -> None:
    status, address, content = browser.open(page)
    assert status == 200
    seen = {address}
    todo = [(address, content)]
    while todo:
        base, text = todo.pop()
        for found in LINKS.findall(text):
            link = urljoin(base, next(part for part in found if part).decode().replace("&amp;", "&"))
            if urlsplit(link).netloc != urlsplit(browser.top).netloc or link in seen or "sign-out" in link:
                continue
            seen.add(link)
            assert link.startswith(browser.top), (base, link)
            status, address, content = browser.open(link)
            assert status == 200, (base, link)
            if link.endswith((".js", ".css")):
                todo.append((address, content))
    assert len(seen) > 2


def test_the_api_answers_under_the_path(browser: Browser) -> None:
    status, _, content = browser.open("health")
    assert status in {200, 503}
    json.loads(content)
    data = encoded(image(1), "JPEG")
    status, _, content = browser.open("api/uploads?name=x.jpg", data, **{"content-type": "image/jpeg"})
    assert status == 200, content
    status, _, content = browser.open("api/query", data, **{"content-type": "image/jpeg"})
    assert (status, "error" in json.loads(content)) == (404, True)  # there is no index yet


def test_a_form_gets_a_sentence_with_the_way(browser: Browser) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.jpg"\r\n\r\n' + encoded(image(1), "JPEG")
    form = {"content-type": "multipart/form-data; boundary=x"}
    status, _, content = browser.open("api/query", body + b"\r\n--x--", **form)
    assert status == 422
    assert "a part 'file', expected image or unlike: curl -F image=@a.jpg" in json.loads(content)["error"]


def test_the_path_without_its_last_slash_leads_to_the_page(browser: Browser) -> None:
    status, address, _ = browser.open(ROOT)
    assert (status, address) == (200, browser.top)


def test_what_lies_beside_the_path_is_another_server_s(browser: Browser) -> None:
    assert browser.open(f"{ROOT}-and-more/")[0] == 404
