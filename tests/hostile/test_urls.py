"""Lists of URLs that strangers wrote: they reach nothing that is not public, never for ever, and show no signature.

The servers listen on 127.0.0.1, which the tests call public where they need such an address; 127.0.0.2 stays private.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from http.server import HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from mg_milvus import errors
from mg_milvus.bulk import remote
from mg_milvus.bulk.dataset import Shard
from mg_milvus.bulk.encode import EncodeOptions, encode
from mg_milvus.bulk.import_jobs import ImportApi
from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.load import load_encoder
from tests.found_images import images
from tests.images import encoded, image
from tests.in_process import mgm
from tests.server.test_tls import Repeats
from tests.tls import make_certificates, tls_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

JPEG = encoded(image(1), "JPEG")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 passes for an address of the Internet."""
    real = remote.is_public
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1" or real(address))


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def moved(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


class Server:
    """Answers each connection with raw bytes; remembers what it was asked."""

    def __init__(self, address: str, answer: Callable[[str, socket.socket], bytes]) -> None:
        self._listener = socket.create_server((address, 0))
        self._answer = answer
        self.asked: list[str] = []
        self.ended = threading.Event()
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                taken, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(taken,), daemon=True).start()

    def _one(self, taken: socket.socket) -> None:
        with taken:
            try:
                head = b""
                while b"\r\n\r\n" not in head and (more := taken.recv(65536)):
                    head += more
                self.asked.append(head.decode())
                taken.sendall(self._answer(head.decode(), taken))
            except OSError:
                pass

    def close(self) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def serving(
    answer: Callable[[str, socket.socket], bytes] | bytes, address: str = "127.0.0.1"
) -> Iterator[Server]:  # fmt: skip
    server = Server(address, answer if callable(answer) else lambda *_: answer)
    try:
        yield server
    finally:
        server.close()


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(errors.ImageError) as caught:
        remote.fetch(url, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PRIVATE = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254", "172.16.0.1", "192.168.1.1",
    "192.0.0.192", "168.63.129.16",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%1",
    "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "4000::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::1", "2001:db8::1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_of_the_internet(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not remote.is_public(address)
    # A name that leads there is as bad, beside however many good addresses.
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = [(family, socket.SOCK_STREAM, 6, "", (each, 80)) for each in ("8.8.8.8", address)]
    monkeypatch.setattr(remote, "resolve", lambda *_: found)
    monkeypatch.setattr(remote._Connection, "connect_to", lambda *_: pytest.fail("connected"))
    assert f"leads to {address}, which is no public address: use --allow-private" in refusal("http://images.test/a.jpg")


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet(address: str) -> None:
    assert remote.is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "localhost.", "[::1]", "[::ffff:127.0.0.1]", "127.0.0.1.", "2130706433", "0x7f000001",
     "0x7f.1", "0177.0.0.1", "127.1", "0", "127.0.0.0x1", "１２７.0.0.1", "127。0。0。1", "①27.0.0.1"],
)  # fmt: skip
def test_no_way_to_write_the_loopback_leads_there(host: str) -> None:
    with serving(ok(JPEG)) as server:
        refusal(f"http://{host}:{server.port}/a.jpg")
        assert server.asked == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://a.test/a\r\nHost: b", "control characters"),
        ("http://a.test/\x00", "control characters"),
        ("http://a.test\t/a.jpg", "control characters"),
        ("http://a.test/\u202egpj.exe", "control characters"),
        ("s3://a/\nb", "control characters"),
        ("http://me:secret@a.test/", "holds a password"),
        ("http://me@a.test/", "holds a password"),
        ("http://a.test\\@b.test/", "holds a password"),
        ("s3://key:secret@bucket/a.jpg", "holds a password"),
        ("http://a.test:99999/", "no host and port"),
        ("http://a b.test/", "no host that can be used"),
        ("http:///a.jpg", "no host that can be used"),
        ("http://[::1/", "no URL"),
        ("http://[v1.x]/", "no "),
        ("gopher://a.test/", "has the protocol gopher://"),
    ],
)
def test_urls_that_are_made_to_be_misread(url: str, reason: str) -> None:
    assert reason in refusal(url)
    assert reason in refusal(url, allow_private=True)


def test_allow_private_is_for_lists_of_ones_own(tmp_path: Path) -> None:
    with serving(ok(JPEG)) as server:
        (tmp_path / "list.txt").write_text(f"http://127.0.0.1:{server.port}/a.jpg?sig=hunter22\n")
        options = ("encode", "list.txt", "--encoder", "builtin", "--out", "codes", "--json")
        done = mgm(*options, cwd=tmp_path)
        assert (done.returncode, server.asked) == (3, [])
        assert "which is no public address: use --allow-private" in done.stdout
        assert "hunter22" not in done.stdout + done.stderr
        assert mgm(*options, "--allow-private", cwd=tmp_path).returncode == 0
        options = EncodeOptions(allow_private=True)
        report = encode(tmp_path / "list.txt", out=tmp_path / "more", encoder=load_encoder(), options=options)
        assert report.encoded == 1


def test_what_was_checked_is_what_is_connected_to(public: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that changes its mind between two queries is asked once."""
    with serving(ok(JPEG)) as good, serving(ok(b"inner"), "127.0.0.2") as inner:
        answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])

        def resolve(_host: str, port: int) -> list[tuple[Any, ...]]:
            address = next(answers)
            where = good.port if address == "127.0.0.1" else inner.port
            assert port == 80
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, where))]

        monkeypatch.setattr(remote, "resolve", resolve)
        assert remote.fetch("http://images.test/a.jpg?x=1") == JPEG
        assert "leads to 127.0.0.2" in refusal("http://images.test/a.jpg")
        assert inner.asked == []
        head = good.asked[0].splitlines()
        assert head[0] == "GET /a.jpg?x=1 HTTP/1.1"
        assert {"Host: images.test", "Accept-Encoding: identity", "Connection: close"} <= set(head)


def test_a_redirect_inwards_is_refused_and_five_are_followed(public: None) -> None:
    with serving(ok(b"inner"), "127.0.0.2") as inner:

        def answer(head: str, _: socket.socket) -> bytes:
            path = head.split()[1]
            if path == "/in":
                return moved(f"http://127.0.0.2:{inner.port}/secret")
            left = int(path[1:])
            return moved(f"/{left - 1}", 301 + left % 3) if left else ok(JPEG)

        with serving(answer) as server:
            base = f"http://127.0.0.1:{server.port}"
            assert "leads to 127.0.0.2" in refusal(f"{base}/in")
            assert inner.asked == []
            assert remote.fetch(f"{base}/5") == JPEG
            assert refusal(f"{base}/6") == "cannot be fetched: it is redirected more than 5 times"
            assert len(server.asked) == 1 + 6 + 6


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("ftp://127.0.0.1/a", "from http:// to ftp://"),
        ("file:///etc/passwd", "from http:// to file://"),
        ("s3://bucket/a", "from http:// to s3://"),
        ("http://me:secret@127.0.0.1/a", "holds a password"),
        ("http://2130706433/a", "no IP address as it is usually written"),
    ],
)
def test_redirects_that_are_not_followed(location: str, reason: str, public: None) -> None:
    with serving(moved(location)) as server:
        assert reason in refusal(f"http://127.0.0.1:{server.port}/a.jpg")


def test_tls_is_checked_against_the_name_and_never_left(
    tmp_path: Path, public: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pems = make_certificates(tmp_path / "pems")
    monkeypatch.setenv("SSL_CERT_FILE", str(pems / "ca.pem"))
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(remote, "resolve", lambda _host, port: [(*each[:4], ("127.0.0.1", port)) for each in here])

    def answer(head: str, _: socket.socket) -> bytes:
        return moved("http://milvus.test/a.jpg") if head.startswith("GET /down") else ok(JPEG)

    with serving(answer) as server, tls_proxy(pems, f"http://127.0.0.1:{server.port}") as port:
        assert remote.fetch(f"https://milvus.test:{port}/a.jpg") == JPEG
        assert f"Host: milvus.test:{port}" in server.asked[0]
        assert "from https:// to http://" in refusal(f"https://milvus.test:{port}/down")
        assert "certificate verify failed" in refusal(f"https://other.test:{port}/a.jpg")
        monkeypatch.setenv("SSL_CERT_FILE", str(pems / "other.pem"))
        assert "certificate verify failed" in refusal(f"https://milvus.test:{port}/a.jpg")


def drip(pieces: bytes, begin: bytes) -> Callable[[str, socket.socket], bytes]:
    """A byte every now and then: never silent for long, and never done."""

    def answer(_: str, taken: socket.socket) -> bytes:
        taken.sendall(begin)
        while True:
            taken.sendall(pieces)
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "begin",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    ids=["status", "header", "body", "body with a length", "length of a chunk"],
)  # fmt: skip
def test_a_server_that_drips_is_left(begin: bytes, public: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_IMAGE_SECONDS", 0.5)
    with serving(drip(b"0", begin)) as server:
        begun = time.monotonic()
        assert refusal(f"http://127.0.0.1:{server.port}/a.jpg") == "cannot be fetched: the limit of 0.5 seconds is over"
        assert time.monotonic() - begun < 20


def test_a_server_that_is_silent_is_left(public: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_READ_TIMEOUT", 0.3)

    def silent(_: str, taken: socket.socket) -> bytes:
        taken.recv(1)
        return b""

    with serving(silent) as server:
        assert refusal(f"http://127.0.0.1:{server.port}/a.jpg") == "cannot be fetched: the server does not answer"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ok(bytes(5_000)), "is longer than"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5_000), "is longer than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n" + bytes(1000) + b"\r\n3e8\r\n"
         + bytes(1000) + b"\r\n0\r\n\r\n", "is longer than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "is longer than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + bytes(100), "cut off after 100 of 900 bytes"),
        (ok(b"x", "Content-Encoding: gzip"), "its Content-Encoding is 'gzip', expected identity or none"),
        (ok(b"x", "Content-Encoding: identity", "Content-Encoding: br"), "'br'"),
        (ok(b"x", "Transfer-Encoding: gzip, chunked"), "its Transfer-Encoding is 'gzip, chunked', expected chunked"),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx", "HTTP Error 206: Partial"),
        (b"HTTP/1.1 404 No \x1b[31m\r\n\r\n", "HTTP Error 404: No"),
        (b"SSH-2.0-OpenSSH\r\n", "cannot be fetched: SSH-2.0-OpenSSH"),
        (b"", "cannot be fetched: "),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "cannot be fetched: got more than 100 headers"),
    ],
)  # fmt: skip
def test_answers_that_are_too_long_or_not_plain(
    answer: bytes, reason: str, public: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 1_000)
    with serving(answer) as server:
        assert reason in refusal(f"http://127.0.0.1:{server.port}/a.jpg")


def test_a_chunked_answer_is_read_whole(public: None) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (JPEG[:100], JPEG[100:], b""))
    with serving(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks) as server:
        assert remote.fetch(f"http://127.0.0.1:{server.port}/a b/ü.jpg?q=é") == JPEG
    assert server.asked[0].startswith("GET /a%20b/%C3%BC.jpg?q=%C3%A9 HTTP/1.1\r\n")


def test_lists_and_tars_of_the_web_are_checked_too(public: None, tmp_path: Path) -> None:
    with serving(ok(b"inner"), "127.0.0.2") as inner:
        lines = [f"http://127.0.0.2:{inner.port}/{name}?sig=hunter22" for name in ("a.jpg", "b.tar", "c.parquet")]
        lines += [
            "s3://key:hunter22@bucket/a.jpg",
            "abfs://mine@evil.test/a.jpg",
            "http://a.test/\x1b[31m.jpg?hunter22",
        ]
        with serving(ok("\n".join(lines).encode())) as server:
            url = f"http://127.0.0.1:{server.port}/list.txt"
            failures: list[Any] = []
            for one in images([url, f"http://127.0.0.2:{inner.port}/list.txt?hunter22"], Shard(), failures.append):
                with pytest.raises(errors.ImageError, match=r"leads to 127\.0\.0\.2"):
                    one.read()
        reasons = [failure.reason for failure in failures]
        assert [reason[:20] for reason in reasons] == [
            "leads to 127.0.0.2, ", "leads to 127.0.0.2, ", "holds a password, wh", "names an account, wh",
            "holds control charac", "leads to 127.0.0.2, ",
        ]  # fmt: skip
        assert inner.asked == []


def test_no_message_and_no_log_shows_the_query_of_a_url(tmp_path: Path) -> None:
    lines = [f"http://127.0.0.1:1/{name}?sig=hunter22" for name in ("a.jpg", "b.tar", "c.parquet", "d.tar")]
    (tmp_path / "list.txt").write_text(
        "\n".join([*lines, "ftp://a.test/x.jpg?sig=hunter22", "http://0x7f.1/?hunter22"])
    )
    for flags in ([], ["--log-json"], ["--json"], ["--allow-private"]):
        done = mgm(
            "encode", "list.txt", "http://127.0.0.1:1/e.txt?sig=hunter22", "--encoder", "builtin", "--out", "codes",
            *flags, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 3
        assert "http://127.0.0.1:1/a.jpg?…" in (done.stdout + done.stderr).replace("\\u2026", "…")
        assert "hunter22" not in done.stdout + done.stderr
    done = mgm("encode", "ftp://a.test/x?sig=hunter22", "--encoder", "builtin", "--out", "codes", cwd=tmp_path)
    assert "ftp://a.test/x?…" in done.stderr
    assert "hunter22" not in done.stderr
    assert (
        remote.reason_of(OSError("403 at https://a.test/x.jpg?X-Sig=hunter22 now"))
        == "403 at https://a.test/x.jpg?… now"
    )


def test_through_a_proxy_of_the_environment(public: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(ok(JPEG)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:hunter22@127.0.0.1:{proxy.port}")

        def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
            known = {"127.0.0.1": "127.0.0.1", "10.0.0.1": "10.0.0.1", "inner.test": "192.168.0.1"}
            if host not in known:
                raise socket.gaierror(-2, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], port))]

        monkeypatch.setattr(remote, "resolve", resolve)
        assert "leads to 10.0.0.1" in refusal("http://10.0.0.1/a.jpg")
        assert "leads to 192.168.0.1" in refusal("http://inner.test/a.jpg")
        assert proxy.asked == []
        assert remote.fetch("http://only.the.proxy.knows.test/a.jpg?x") == JPEG
        head = proxy.asked[0].splitlines()
        assert head[0] == "GET http://only.the.proxy.knows.test:80/a.jpg?x HTTP/1.1"
        assert {"Host: only.the.proxy.knows.test", "Proxy-Authorization: Basic bWU6aHVudGVyMjI="} <= set(head)
        monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
        assert "the environment's proxy is socks5://, expected http://" in refusal("http://a.test/a.jpg")


def test_through_the_tunnel_of_a_proxy(tmp_path: Path, public: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pems = make_certificates(tmp_path / "pems")
    monkeypatch.setenv("SSL_CERT_FILE", str(pems / "ca.pem"))
    with serving(ok(JPEG)) as server, tls_proxy(pems, f"http://127.0.0.1:{server.port}") as port:

        def tunnel(_: str, taken: socket.socket) -> bytes:
            with socket.create_connection(("127.0.0.1", port)) as onward:
                taken.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(onward, taken), daemon=True)
                back.start()
                pump(taken, onward)
                back.join(10)
            return b""

        def pump(source: socket.socket, sink: socket.socket) -> None:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

        with serving(tunnel) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            assert remote.fetch("https://milvus.test/a.jpg") == JPEG
            assert proxy.asked[0].startswith("CONNECT milvus.test:443 HTTP/1.")
            assert "Host: milvus.test" in server.asked[0]


def test_import_jobs_hand_no_token_to_where_a_server_redirects_to() -> None:
    with HTTPServer(("127.0.0.1", 0), Repeats) as target:
        with serving(moved(f"http://127.0.0.1:{target.server_port}/")) as server:
            api = ImportApi(MilvusConfig(f"http://127.0.0.1:{server.port}", "me:hunter22"))
            with pytest.raises(errors.UnsupportedError, match="answers 302 Moved"):
                api.running("images")
        target.timeout = 0.2
        asked: list[object] = []
        target.process_request = lambda *args: asked.append(args)  # type: ignore[method-assign]
        target.handle_request()
        assert asked == []


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_what_is_no_content_has_an_end_too(
    begin: bytes, again: bytes, public: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trailers, and answers before the answer, which http.client reads as long as they come."""
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)

    def told(_: str, taken: socket.socket) -> bytes:
        taken.sendall(begin)
        for _number in range(400):
            taken.sendall(again * 2000)
        return b""

    with serving(told) as server:
        assert "sends far more than the file" in refusal(f"http://127.0.0.1:{server.port}/a.jpg")


def test_a_list_of_the_web_cannot_use_the_keys_to_buckets(public: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote.BUCKETS, "memory", "fsspec")
    failures: list[Any] = []
    with serving(lambda *_: ok(b"memory://mine/a.jpg\nhttp://127.0.0.1/b.jpg\n")) as server:
        url = f"http://127.0.0.1:{server.port}/list.txt"
        assert [one.path for one in images([url], Shard(), failures.append)] == ["http://127.0.0.1/b.jpg"]
    assert [failure.reason for failure in failures] == [
        "is in a bucket, which a list on the web may not name: your keys would open it"
    ]
