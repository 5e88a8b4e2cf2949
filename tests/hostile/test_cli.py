"""The command line among secrets and hostile names: nothing that it writes holds a secret, or steers a terminal."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mg_milvus.cli.app import run
from tests.conftest import make_photos
from tests.images import save_image

if TYPE_CHECKING:
    from collections.abc import Sequence

SECRETS = {
    "MGM_TOKEN": "root:hunter22-milvus",
    "AWS_SECRET_ACCESS_KEY": "hunter22-bucket",
    "AWS_SESSION_TOKEN": "hunter22-session",
    "HTTPS_PROXY": "http://me:hunter22-proxy@127.0.0.1:9",
}
WORD = "hunter22"

COMMANDS: tuple[Sequence[str], ...] = (
    ("ingest", "photos", "--metrics-file", "ingest.prom"),
    ("ingest", "photos", "--json"),
    ("query", "photos/disc/00.jpg", "--html", "query.html"),
    ("query", "photos/disc/00.jpg", "--explain", "--json"),
    ("duplicates", "--html", "duplicates.html", "--distance", "0"),
    ("info",), ("info", "--json"), ("doctor",), ("doctor", "--json"), ("schema", "show"),
    ("export", "codes"), ("plan", "--images", "1000"),
    ("query", "nowhere.jpg"), ("query", "--filter", "(((", "photos/disc/00.jpg"),
)  # fmt: skip


def told(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """All that a command prints."""
    monkeypatch.setattr(sys, "argv", ["mgm", *arguments])
    with warnings.catch_warnings():
        run()
    return "".join(capfd.readouterr())


@pytest.mark.parametrize("flags", [[], ["--log-json"]])
def test_no_output_and_no_file_holds_a_secret_of_the_environment(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path / "photos", 2)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"none")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MGM_URI", "own.db")
    monkeypatch.setenv("MGM_DEBUG", "1")
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    printed = [told([*command, *flags], monkeypatch, capfd) for command in COMMANDS]
    assert all(printed), "each command says something"
    assert not [text for text in printed if WORD in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"ingest.prom", "query.html", "duplicates.html", "own.db"} <= {path.name for path in files}
    assert any(path.suffix == ".parquet" for path in files)
    assert [path for path in files if WORD.encode() in path.read_bytes()] == []


SETTINGS = {
    "a value": 'workers: "\\e]0;owned\\a\\e[31m\\u202e"',
    "a key": '"\\e[31m\\u202e": 1',
    "a device": 'device: "\\e[31m\\u202e\\r\\n"',
    "a schema": 'schema: "\\e[31m\\u202e"',
    "an encoder": 'encoder: "\\e[31m\\u202e"',
    "a collection": 'collection: "\\e[31m\\u202e"',
    "a data file": 'uri: "\\e[31m\\u202e/x.db"',
    "a list": 'uri: ["\\e[31m"]',
}


@pytest.mark.parametrize("command", [("info",), ("ingest", "photos"), ("schema", "diff", "default")], ids="-".join)
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_hostile_file_of_settings_cannot_steer_the_terminal(
    kind: str, command: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save_image(tmp_path / "a.png", 1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "mgm.yaml").write_text(SETTINGS[kind])
    monkeypatch.chdir(tmp_path)
    text = told(command, monkeypatch, capfd)
    assert text
    assert [char for char in text.replace("\n", "") if not char.isprintable()] == []


def test_hostile_names_of_files_cannot_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Folders and files that came from elsewhere, as the shell's ``*`` hands them over."""
    folder = tmp_path / "\x1b[31m\u202efolder"
    folder.mkdir()
    names = ["\x1b]0;owned\x07.jpg", "two\nlines.jpg", "\u202egpj.jpg", os.fsdecode(b"\xff.jpg")]
    for number, name in enumerate(names):
        save_image(folder / f"{number}.png", number).rename(folder / name)
    (folder / "\x1b[32mbroken.jpg").write_bytes(b"none")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MGM_URI", "own.db")
    image = f"{folder.name}/{names[0]}"
    for command in (
        ("ingest", folder.name), ("query", image), ("query", image, "--explain"), ("query", f"{folder.name}/none"),
        ("query", image, "--html", f"{folder.name}/none/x.html"), ("duplicates",), ("duplicates", "--json"),
        ("query", image, "--json"), ("delete", f"{folder.name}/none"), ("delete", image),
        ("ingest", f"{folder.name}/none"), ("ingest", ".", "--metadata", f"{folder.name}/none.csv"),
        ("ingest", ".", "--schema", f"{folder.name}/none.yaml"), ("eval", folder.name), ("fit", folder.name),
        ("encode", folder.name, "--out", f"{folder.name}/{names[0]}/x"), ("schema", "check", f"{folder.name}/none"),
        (f"{folder.name}",), ("query", f"--{folder.name}"),
    ):  # fmt: skip
        text = told(command, monkeypatch, capfd)
        assert text, command
        assert [char for char in text.replace("\n", "") if not char.isprintable()] == [], command
        for line in text.splitlines():
            if "--json" in command and line.startswith("{"):
                json.loads(line)
