"""``mgm serve`` as people run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.conftest import make_photos
from tests.in_process import mgm
from tests.servers import free_port
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("uvicorn", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")


def test_serve_answers_as_query_does_and_ends_quietly_with_ctrl_c(tmp_path: Path) -> None:
    image = make_photos(tmp_path / "photos", per_kind=4) / "disc" / "01.jpg"
    assert mgm("ingest", "photos", cwd=tmp_path).returncode == 0
    expected = mgm("query", image, "--json", "-k", "5", "--profile", "category", cwd=tmp_path).stdout.splitlines()
    server = subprocess.Popen(
        [sys.executable, "-m", "mg_milvus", "serve", "--port", "0"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = server.stdout.readline()
        home = line.split()[0]
        assert line == f"{home} · 12 images in 'images' · press Ctrl-C to stop\n"
        request = urllib.request.Request(f"{home}api/query?k=5&profile=category", image.read_bytes(), method="POST")
        with urllib.request.urlopen(request) as answer:
            hits = json.load(answer)["hits"]
        with urllib.request.urlopen(f"{home}api/sample?count=5&filter=width%20%3E%3D%2090") as answer:
            sample = json.load(answer)
        port = int(home.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as slow:
            # An upload that does not get on: its visitor is cut off.
            slow.sendall(f"POST /api/query HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())
            slow.sendall(b"Content-Length: 100000\r\nExpect: 100-continue\r\n\r\n")
            assert slow.recv(100).startswith(b"HTTP/1.1 100")  # it is being read
            server.send_signal(signal.SIGINT)
            out, errors = server.communicate(timeout=PATIENCE)
    finally:
        server.kill()
    assert [{"query": str(image)} | hit for hit in hits] == [json.loads(text) for text in expected]
    assert len({row["path"] for row in sample}) == 5
    assert (server.returncode, out, errors) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "a token is needed: add --token"),
        (["--token", "short"], "at least 12"),
        (["--host", "no such host", "--token", "a token long enough"], "is no address"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    result = mgm("serve", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert sentence in result.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        result = mgm("serve", "--port", str(port), cwd=tmp_path)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr
    assert "--port" in result.stderr


def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    (tmp_path / "hidden" / "uvicorn").mkdir(parents=True)
    (tmp_path / "hidden" / "uvicorn" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'uvicorn'\", name='uvicorn')"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path / "hidden"), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(  # started: Python reads the path at its start
        [sys.executable, "-m", "mg_milvus", "serve"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "needs the package uvicorn" in result.stderr
    assert "pip install 'mg-milvus[web]'" in result.stderr
