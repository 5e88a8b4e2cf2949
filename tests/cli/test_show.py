"""``mgm query --show``: what is sent to a terminal, decoded back to pixels by the rules of each protocol."""

from __future__ import annotations

import base64
import io
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from mg_milvus.cli.show import KITTY_CHUNK, blocks, iterm, kitty, method_for, sixel
from mg_milvus.index import ImageIndex
from tests.cli.test_log import run


def painted(width: int = 90, height: int = 47) -> Image.Image:
    """Many colours, and a hole."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256, np.full_like(x, 255)], axis=-1)
    pixels[10:20, 30:50, 3] = 0
    return Image.fromarray(pixels.astype(np.uint8))


def from_png(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGBA"))


def from_kitty(text: str) -> tuple[dict[str, str], np.ndarray]:
    """The first sequence's keys, and the image."""
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) == text
    assert [keys.split("m=")[-1] for keys, _ in parts] == ["1"] * (len(parts) - 1) + ["0"]
    assert all(len(data) <= KITTY_CHUNK and len(data) % 4 == 0 for _, data in parts)
    return dict(pair.split("=") for pair in parts[0][0].split(",")), from_png("".join(data for _, data in parts))


def from_iterm(text: str) -> tuple[dict[str, str], np.ndarray]:
    keys, data = re.fullmatch(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\a", text).groups()
    return dict(pair.split("=") for pair in keys.split(";")), from_png(data)


def from_sixel(text: str) -> np.ndarray:
    """RGBA pixels; those that no sixel has set are transparent."""
    body = re.fullmatch(r"\x1bP0;1;0q(.*)\x1b\\", text, re.DOTALL)[1]
    palette: dict[int, list[int]] = {}
    pixels = np.zeros((0, 0, 4), np.uint8)
    x = y = colour = 0
    for token in re.findall(r'"[\d;]+|#\d+(?:;2;\d+;\d+;\d+)?|!\d+[?-~]|[?-~]|[$-]', body):
        if token[0] == '"':
            _, _, width, height = map(int, token[1:].split(";"))
            pixels = np.zeros((height + 6, width, 4), np.uint8)
        elif token[0] == "#":
            colour, *rest = map(int, token[1:].split(";"))
            if rest:
                palette[colour] = [round(255 * part / 100) for part in rest[1:]]
        elif token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        else:
            count = int(token[1:-1]) if token[0] == "!" else 1
            for bit in range(6):
                if (ord(token[-1]) - 63) >> bit & 1:
                    pixels[y + bit, x : x + count] = [*palette[colour], 255]
            x += count
    assert not pixels[height:].any()
    return pixels[:height]


CUBE = [0, 95, 135, 175, 215, 255]


def from_blocks(text: str) -> np.ndarray:
    """RGBA pixels, two for each character."""
    rows = []
    for line in text.split("\n"):
        front = back = [0, 0, 0, 0]
        upper, lower = [], []
        for codes, character in re.findall(r"\x1b\[([\d;]*)m|(.)", line):
            if character:
                top, bottom = {"▀": (front, back), "▄": (back, front), " ": (back, back)}[character]
                upper.append(top)
                lower.append(bottom)
                continue
            numbers = [int(code) for code in codes.split(";")]
            while numbers:
                what = numbers.pop(0)
                if what == 0:
                    front = back = [0, 0, 0, 0]
                    continue
                if numbers.pop(0) == 2:
                    colour = [numbers.pop(0), numbers.pop(0), numbers.pop(0), 255]
                else:
                    place = numbers.pop(0) - 16
                    colour = [CUBE[place // 36], CUBE[place // 6 % 6], CUBE[place % 6], 255]
                front, back = (colour, back) if what == 38 else (front, colour)
        rows += [upper, lower]
    return np.array(rows, np.uint8)


@pytest.mark.parametrize(("decoder", "encoder", "rows"), [(from_kitty, kitty, "r"), (from_iterm, iterm, "height")])
def test_kitty_and_iterm_get_the_image_as_it_is(decoder, encoder, rows) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (120, 160, 4), dtype=np.uint8))
    for image in (painted(), noise):  # the second takes many chunks
        keys, pixels = decoder(encoder(image, 18, 7))
        assert (pixels == np.asarray(image)).all()
        assert (keys["c" if rows == "r" else "width"], keys[rows]) == ("18", "7")
    assert keys.get("q", "2") == "2"  # kitty must not answer into the shell


@pytest.mark.parametrize("size", [(90, 47), (6, 6), (1, 1), (13, 12)])
def test_sixel(size: tuple[int, int]) -> None:
    image = painted(*size)
    found, expected = from_sixel(sixel(image, 9, 5)), np.asarray(image)
    assert found.shape == expected.shape
    assert (found[..., 3] == expected[..., 3]).all()
    drawn = expected[..., 3] == 255
    error = np.abs(found[drawn].astype(int) - expected[drawn].astype(int))
    assert error.mean() < 12  # of 255, with 255 colours for four thousand
    flat = Image.new("RGBA", (50, 9), (255, 0, 51, 255))
    assert (from_sixel(sixel(flat, 5, 1)) == [255, 0, 51, 255]).all()
    assert "!50" in sixel(flat, 5, 1)


def test_half_blocks() -> None:
    colours = np.random.default_rng(2).integers(0, 256, (8, 10, 4), dtype=np.uint8)
    colours[..., 3] = 255
    colours[:3, :4] = colours[5:, 7:] = 0
    image = Image.fromarray(colours)  # a pixel for each half: nothing is scaled
    assert (from_blocks(blocks(image, 10, 4)) == colours).all()
    coarse = from_blocks(blocks(image, 10, 4, true_colour=False))
    assert (coarse[..., 3] == colours[..., 3]).all()
    nearest = np.array(CUBE)[np.abs(colours[..., :3, None].astype(int) - CUBE).argmin(axis=-1)]
    near = np.abs(coarse[..., :3].astype(int) - colours[..., :3]) - np.abs(nearest - colours[..., :3])
    assert near[colours[..., 3] == 255].max() <= 1  # ties between two steps of the cube aside


@pytest.mark.parametrize(
    ("environment", "method"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "TMUX": "/tmp/x"}, "blocks"),
        ({"TERM": "screen", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, "kitty"),
        ({"TERM": "dumb"}, None),
        ({}, None),
        ({"TERM": "dumb", "MGM_SHOW": "sixel"}, "sixel"),
        ({"TERM": "xterm-kitty", "MGM_SHOW": "blocks"}, "blocks"),
    ],
)
def test_which_terminal_shows_what(environment: dict[str, str], method: str | None) -> None:
    assert method_for(environment, terminal=True) == method
    assert method_for(environment, terminal=False) == environment.get("MGM_SHOW")
    with pytest.raises(typer.BadParameter, match="MGM_SHOW is 'ascii', expected kitty, iterm, sixel, blocks"):
        method_for(environment | {"MGM_SHOW": "ascii"}, terminal=True)


@pytest.fixture
def asked(labelled_index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mg_milvus.cli.settings.open_index", lambda *_, **__: nullcontext(labelled_index))


def test_the_command_shows_the_hits(asked: None, labelled_photos: Path) -> None:
    image = labelled_photos / "disc" / "03.jpg"
    done = run("query", image, "-k", "5", "--show", MGM_SHOW="kitty")
    assert done.exit_code == 0
    sheets = re.findall(r"(?:\x1b_G[^\x1b]*\x1b\\)+", done.stdout)
    sizes = [from_kitty(sheet)[1].shape for sheet in sheets]
    # Four beside each other in 80 columns: 4 rooms of 18 and 3 gaps of 2, a character being 10 x 20 pixels.
    assert sizes == [(140, 780, 4), (140, 180, 4)]
    keys, first = from_kitty(sheets[0])
    assert (keys["c"], keys["r"]) == ("78", "7")
    assert (first[:, 180:200, 3] == 0).all()
    shown = Image.open(image).convert("RGB").resize((180, 120), Image.Resampling.LANCZOS)
    error = np.abs(first[10:130, :180, :3].astype(int) - np.asarray(shown))
    assert error.mean() < 3  # it is itself the first, in the middle of its room
    lines = re.sub(r"\x1b_G[^\x1b]*\x1b\\", "", done.stdout).splitlines()
    assert lines[1].split()[:2] == ["1", "0.0492"]
    assert (lines[2].split()[0], len(lines[2].split())) == ("03.jpg", 4)
    assert any(line.startswith("rank") for line in lines)  # the table follows


def test_what_is_gone_is_crossed_out(
    asked: None, labelled_photos: Path, labelled_index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mg_milvus.cli import show

    monkeypatch.setattr(show, "_USUAL_ROOM", show._Cells(4, 2))
    monkeypatch.setattr("mg_milvus.images.discover.text_path", lambda path: Path("/gone") / path[1:])
    done = run("query", labelled_photos / "disc" / "03.jpg", "-k", "1", "--show", MGM_SHOW="sixel")
    pixels = from_sixel(re.search(r"\x1bP.*?\x1b\\", done.stdout, re.DOTALL)[0])
    assert pixels.shape == (40, 40, 4)
    assert np.abs(pixels[20, 20, :3].astype(int) - 0x40).max() <= 2
    assert np.abs(pixels[20, 2, :3].astype(int) - 0x80).max() <= 2


def test_where_nothing_can_be_shown(asked: None, labelled_photos: Path) -> None:
    image = labelled_photos / "disc" / "03.jpg"
    done = run("query", image, "-k", "1", "--show", TERM="xterm-kitty")
    assert done.exit_code == 0
    assert done.stderr.startswith("mgm: no images: standard output is no terminal with colours. --html FILE")
    assert "\x1b" not in done.stdout
    assert done.stdout == run("query", image, "-k", "1").stdout
    assert run("query", image, "--show", "--json").exit_code == 2
    done = run("query", image, "--show", MGM_SHOW="ascii")
    assert (done.exit_code, done.stdout) == (2, "")
