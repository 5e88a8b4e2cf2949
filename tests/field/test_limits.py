"""Panoramas: one limit, by an option and a variable, wherever images are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mg_milvus.errors import ImageError
from mg_milvus.images.decode import open_image
from mg_milvus.index import ImageIndex
from tests.images import save_image
from tests.in_process import mgm

SIZE = (100, 40)
REFUSED = "has 4000 pixels (100x40), more than max_pixels=3999: raise it by --max-pixels or MGM_MAX_PIXELS"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    (folder / "photos").mkdir()
    for seed in range(3):
        save_image(folder / f"photos/{seed}.png", seed, SIZE)
    done = mgm("ingest", "photos", "--max-pixels", "4000", cwd=folder)
    assert done.stdout.startswith("3 seen: 3 added"), done
    return folder


COMMANDS: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest", "photos", "--uri", "memory:"),
    "page": ("query", "photos/0.png", "--html", "page.html"),
    "of": ("duplicates", "--of", "photos/0.png", "--distance", "20"),
    "refit": ("refit", "--to", "again"),
    "encode": ("encode", "photos", "--encoder", "builtin", "--out", "codes"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_and_a_variable_set_the_limit(
    command: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = list(COMMANDS[command])
    if words[-1] in {"codes", "page.html"}:
        words[-1] = str(tmp_path / words[-1])
    monkeypatch.setenv("MGM_MAX_PIXELS", "3999")
    refused = mgm(*words, cwd=home)
    assert refused.returncode in {1, 3}
    assert REFUSED in refused.stdout + refused.stderr
    if command == "refit":
        words[-1] = "taken"
    done = mgm(*words, "--max-pixels", "4000", cwd=home)
    assert done.returncode == 0, done
    if command == "page":
        text = (tmp_path / "page.html").read_text()
        assert len(re.findall("data:image/jpeg;base64,", text)) == 4  # the query, and three hits


def test_the_limit_of_a_folder_is_in_its_settings(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mgm.yaml").write_text(f"uri: {home / 'mgm.db'}\nmax_pixels: 3999\n")
    assert REFUSED in mgm("query", home / "photos/0.png", cwd=tmp_path).stderr
    assert mgm("query", home / "photos/0.png", "--max-pixels", "4000", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("value", ["many", "0", "-3", "1e6"])
def test_a_limit_that_is_none_is_one_line(value: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGM_MAX_PIXELS", value)
    done = mgm("query", "photos/0.png", cwd=home)
    assert done.returncode == 2
    assert "MGM_MAX_PIXELS" in done.stderr
    with pytest.raises(ImageError, match=f"MGM_MAX_PIXELS is '{value}', expected a number of pixels"):
        open_image(home / "photos/0.png")


def test_the_variable_holds_for_python_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGM_MAX_PIXELS", "3999")
    with ImageIndex.open(home / "mgm.db") as index:
        with pytest.raises(ImageError, match="more than max_pixels=3999"):
            index.query(home / "photos/0.png")
        monkeypatch.setenv("MGM_MAX_PIXELS", "4000")
        assert index.query(home / "photos/0.png", k=1)[0].path == str(home / "photos/0.png")
