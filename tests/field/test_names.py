"""Names as disks have them: spaces of other kinds, line breaks, bytes that are not UTF-8."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from mg_milvus.images.discover import text_path
from tests.field.shells import make_index, shell

ODD: tuple[str | bytes, ...] = (
    "narrow\u202fspace.jpg", "hard\u00a0space.jpg", "line\nbreak.jpg", "tab\t.jpg", "right\u202eleft.jpg", "-k.jpg",
    "\u0301accent.jpg", *(() if sys.platform == "darwin" else (b"latin \xe9.jpg", b"\xff\xfe.jpg")),
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("names"), ODD, count=1)


def paths_of(home: Path) -> set[bytes]:
    """The paths of all images; ``--keep`` leaves out one of them."""
    return {os.fsencode(home / "photos" / os.fsdecode(name)) for name in (*ODD, "0.jpg")}


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_print0_gives_paths_that_open(home, locale):
    done = shell(
        ["duplicates", "--keep", "first", "--distance", "2", "--print0"], home, "", {**os.environ, "LC_ALL": locale}
    )
    assert done.returncode == 0, done.stderr
    paths = done.stdout.split(b"\0")
    assert paths.pop() == b""
    assert len(paths) == len(ODD)
    assert len(set(paths)) == len(ODD)
    assert set(paths) < paths_of(home)


def test_lines_are_the_bytes_of_the_disk(home):
    done = shell(["duplicates", "--keep", "first", "--distance", "2"], home)
    named = {path for path in done.stdout.split(b"\n") if os.path.exists(path) and path}
    assert len(named) >= len(ODD) - 1  # the name with a line break is two lines
    assert named < paths_of(home)
    assert b"--print0" in done.stderr


def test_json_is_lossless(home):
    done = shell(["duplicates", "--json", "--distance", "2"], home)
    members = [member for group in json.loads(done.stdout)["groups"] for member in group["members"]]
    assert {os.fsencode(text_path(member["path"])) for member in members} == paths_of(home)


def test_print0_without_keep_is_refused(home):
    done = shell(["duplicates", "--print0"], home)
    assert done.returncode == 2
    assert b"--keep" in done.stderr
