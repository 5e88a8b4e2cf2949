"""``mgm query --show``: images reach the terminal by each method, and nothing where there is no terminal."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_milvus.cli import show
from mg_milvus.index import ImageIndex
from mg_milvus.records import Hit
from tests.cli.test_log import run
from tests.waiting import PATIENCE

CELLS = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀")


@pytest.fixture
def asked(labelled_index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mg_milvus.cli.settings.open_index", lambda *_, **__: nullcontext(labelled_index))


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the library writes past ``sys.stdout``."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "__stdout__", stream)
    return stream


def hit(path: Path) -> Hit:
    return Hit(1, "0" * 32, str(path), 0.5, {}, {})


def test_kitty_gets_the_images_as_one_sheet_a_row(asked: None, labelled_photos: Path, direct: io.StringIO) -> None:
    image = labelled_photos / "disc" / "03.jpg"
    done = run("query", image, "-k", "5", "--show", MGM_SHOW="kitty", NO_COLOR="1")
    assert done.exit_code == 0
    sent = re.findall(r"\x1b_G([^;\x1b]*)(?:;([^\x1b]*))?\x1b\\", direct.getvalue())
    placed = [dict(pair.split("=") for pair in keys.split(",")) for keys, _ in sent if "a=p" in keys]
    # Four beside each other in 80 columns: 4 rooms of 18 and 3 gaps of 2; then the fifth.
    assert [(keys["c"], keys["r"]) for keys in placed] == [("78", "7"), ("18", "7")]
    data = "".join(data for keys, data in sent if f"i={placed[0]['i']}," in keys)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
    height, width = sheet.shape[:2]
    first = sheet[:, : round(width * 18 / 78)]
    expected = Image.open(image).convert("RGB").resize((first.shape[1], first.shape[1] * 2 // 3))
    top = (height - expected.height) // 2
    shown = first[top : top + expected.height, :, :3].astype(int)
    assert np.abs(shown - np.asarray(expected)).mean() < 12  # itself is the first, in the middle of its room
    # One placeholder a cell, and under them rank, score and name.
    assert done.stdout.count("\U0010eeee") == 7 * (78 + 18)
    lines = [line for line in done.stdout.splitlines() if "\U0010eeee" not in line]
    # 3.6 / 61 by the schema's weights, and as much again for the same image.
    assert "1  0.1180" in lines[0] or "1  0.1180" in lines[1]
    assert any(line.startswith("03.jpg") and len(line.split()) == 4 for line in lines)
    assert any(line.startswith("rank") for line in lines)  # the table follows


def test_sixel(asked: None, labelled_photos: Path) -> None:
    done = run("query", labelled_photos / "disc" / "03.jpg", "-k", "1", "--show", MGM_SHOW="sixel")
    header = re.search(r'\x1bP[\d;]*q"1;1;(\d+);(\d+)[^\x1b]+\x1b\\', done.stdout)
    assert header is not None
    assert int(header[1]) * 7 * 2 == int(header[2]) * 18  # cells twice as high as wide


def test_blocks_and_what_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MGM_SHOW", "blocks")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    Image.new("RGB", (100, 50), (200, 30, 40)).save(tmp_path / "red.png")
    show.show_hits([hit(tmp_path / "red.png"), hit(tmp_path / "gone\x1b.png")])
    lines = capsys.readouterr().out.splitlines()
    middle = [[int(number) for number in found] for found in CELLS.findall(lines[4])]
    assert np.abs(np.array(middle[12][:3]) - (200, 30, 40)).max() <= 2
    centre = 25 + 2 + 12
    assert np.abs(np.array(middle[centre][:3]) - 0x40).max() <= 24  # the strokes cross
    assert np.abs(np.array(middle[25 + 2 + 2][:3]) - 0x80).max() <= 24
    assert lines[-2].split() == ["red.png", "gone\\x1b.png"]


@pytest.mark.parametrize(
    ("terminal", "environment", "method"),
    [
        (True, {"TERM": "xterm-256color"}, "blocks"),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, None),
        (True, {"TERM": "dumb"}, None),
        (True, {}, None),
        (True, {"TERM": "dumb", "MGM_SHOW": "sixel"}, "sixel"),
        (False, {"TERM": "xterm-kitty"}, None),
        (False, {"MGM_SHOW": "kitty"}, "kitty"),
    ],
)
def test_which_terminal_shows_what(
    terminal: bool, environment: dict[str, str], method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textual_image import renderable

    monkeypatch.setattr(renderable, "Image", renderable.HalfcellImage)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    for name in ("TERM", "NO_COLOR", "MGM_SHOW"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert show._method() == method


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_that_does_not_reply_with_an_image_piped_in(tmp_path: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    Image.new("RGB", (100, 50), (200, 30, 40)).save(tmp_path / "red.png")
    code = (
        "import sys; from mg_milvus.cli.show import show_hits; from mg_milvus.records import Hit;"
        "show_hits([Hit(1, '0' * 32, sys.argv[1], 0.5, {}, {})])"
    )
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "red.png"], stdin=subprocess.PIPE, stdout=end, check=True,
        timeout=PATIENCE,
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
    )  # fmt: skip
    os.close(end)
    text = os.read(terminal, 100_000).decode(errors="replace")
    os.close(terminal)
    assert CELLS.search(text)


def test_where_nothing_can_be_shown(asked: None, labelled_photos: Path) -> None:
    image = labelled_photos / "disc" / "03.jpg"
    done = run("query", image, "-k", "1", "--show", TERM="xterm-kitty")
    assert done.exit_code == 0
    assert done.stderr.startswith(
        "mgm: --show draws no images: standard output is not a terminal with colours. Use --html FILE"
    )
    assert "\x1b" not in done.stdout
    assert done.stdout == run("query", image, "-k", "1").stdout
    assert run("query", image, "--show", "--json").exit_code == 2
    done = run("query", image, "--show", MGM_SHOW="ascii")
    assert (done.exit_code, done.stdout) == (2, "")


def test_the_extra_is_named_where_it_is_missing(
    asked: None, labelled_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textual_image.renderable", None)
    done = run("query", labelled_photos / "disc" / "03.jpg", "--show", MGM_SHOW="blocks")
    assert done.exit_code == 1
    assert done.stderr == (
        "mgm: --show needs textual-image, which is not installed: pip install 'mg-milvus[terminal]'\n"
    )
