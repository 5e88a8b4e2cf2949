"""``mgm duplicates`` as a user meets it: the command, image files, Milvus Lite in process and over TCP."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from mg_milvus.cli.duplicates import Keep
from mg_milvus.config import MilvusConfig
from mg_milvus.duplicates.report import KEEP
from mg_milvus.files import escape_controls
from mg_milvus.schema.models import Granularity, Schema
from mg_milvus.store.base import Description
from mg_milvus.store.milvus import open_store
from tests.cli.test_cli import mgm
from tests.cli.test_log import run
from tests.conftest import make_photos
from tests.integration.test_pages import Page
from tests.servers import lite_server


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """60 images, copies of four of them under ``photos/copies``, and ``mgm.db`` made of them; one file is gone."""
    folder = tmp_path_factory.mktemp("home")
    photos = make_photos(folder / "photos")
    copies = photos / "copies"
    copies.mkdir()
    originals = [photos / "disc" / f"{n:02}.jpg" for n in range(3)] + [photos / "blocks" / "07.jpg"]
    shutil.copy(originals[0], copies / "again.jpg")
    originals[0].write_bytes(originals[0].read_bytes() + bytes(8))  # viewers ignore what follows the image
    ImageOps.mirror(Image.open(originals[1])).save(copies / "mirrored\n.jpg", quality=90)
    Image.open(originals[2]).resize((192, 128), Image.Resampling.BICUBIC).save(copies / "large.png")
    shutil.copy(originals[3], copies / "same.jpg")
    for file in photos.rglob("*.*"):
        os.utime(file, (1e9, 1e9))
    os.utime(copies / "again.jpg", (2e9, 2e9))
    done = mgm("ingest", "photos", cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    (copies / "same.jpg").unlink()
    return folder


def names(report) -> list[list[str]]:
    return sorted([Path(member["path"]).name for member in group["members"]] for group in report["groups"])


EXPECTED = [["00.jpg", "again.jpg"], ["07.jpg", "same.jpg"]]
"""Of the same pixels, and by codes, since it is gone. The others are small pages, as all drawings are: only similar."""


def test_copies_are_found_and_told_in_json(home):
    before = {file: file.stat().st_mtime_ns for file in (home / "photos").rglob("*.*")}
    done = mgm("duplicates", "--precision", "0.9", "--json", cwd=home)
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    together = [{Path(member["path"]).name for member in group["members"]} for group in report["groups"]]
    assert [pair for pair in EXPECTED if not any(set(pair) <= group for group in together)] == []
    near = json.loads(mgm("duplicates", "--distance", "24", "--json", cwd=home).stdout)
    assert sorted(map(sorted, names(near))) == EXPECTED
    assert (report["rows"], report["compared"], report["precision"]) == (64, 64 * 63 // 2, 0.9)
    assert report["expected_false"] <= 0.1 * report["pairs"]
    assert before == {file: file.stat().st_mtime_ns for file in (home / "photos").rglob("*.*")}
    assert mgm("query", "photos/disc/00.jpg", "-k", "500", "--json", cwd=home).stdout.count(b"\n") == 64


def test_the_text_names_groups_sizes_and_what_near_means(home):
    done = mgm("duplicates", "--distance", "0", "--within", "photos", cwd=home)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "group 1: 2 images, up to 0 bits apart"
    at = next(i for i, line in enumerate(lines) if line.endswith("/blocks/07.jpg"))
    assert lines[at].split()[:2] == ["keep", "96x64"]
    assert lines[at + 1].split()[:3] == ["file", "gone", "96x64"]
    assert lines[at + 1].endswith("/copies/same.jpg")
    assert lines[-5].startswith("2 groups of 4 images among 64; 1 removable (")
    assert lines[-4] == "looked at 1 pair: 1 same image"
    assert lines[-3].startswith("near: at most 0 of 256 bits differ on fine, ")
    assert re.match(r"\d+ near pairs? of 63 compared by codes only; expected by chance: ", lines[-2])
    assert lines[-1].startswith("1 row without a file: mgm ingest finds files that were moved")


def test_keep_prints_only_what_is_removable(home):
    done = mgm("duplicates", "--distance", "12", "--within", "photos/copies", "--keep", "first", cwd=home)
    assert (done.returncode, done.stdout) == (0, b"")
    kept_by = {}
    for rule in ("best", "oldest"):
        done = mgm("duplicates", "--distance", "24", "--keep", rule, cwd=home)
        kept_by[rule] = {Path(line).name for line in done.stdout.decode().splitlines()}
        assert b"removable" in done.stderr
    assert kept_by == {"best": {"again.jpg"}, "oldest": {"again.jpg"}}  # of 07.jpg and same.jpg, one file is gone


def test_new_since_looks_at_pairs_with_a_new_file_only(home):
    for since in ("2010-01-01", "2010-01-01T12:30+02:00"):
        report = json.loads(mgm("duplicates", "--new-since", since, "--distance", "24", "--json", cwd=home).stdout)
        assert names(report) == [["00.jpg", "again.jpg"]]
        assert report["compared"] == 63
    done = mgm("duplicates", "--new-since", "2050-01-01", cwd=home)
    assert done.stdout.decode().splitlines()[:2] == [
        "no near-duplicates among 64 images", "nothing was compared: no image is that new",
    ]  # fmt: skip


def test_of_a_new_image(home, tmp_path):
    (tmp_path / "new.jpg").write_bytes((home / "photos" / "stripes" / "11.jpg").read_bytes() + bytes(8))
    done = mgm("duplicates", "--of", tmp_path / "new.jpg", "--distance", "12", "--json", cwd=home)
    report = json.loads(done.stdout)
    assert {"11.jpg", "new.jpg"} <= {Path(member["path"]).name for member in report["groups"][0]["members"]}
    assert (len(report["groups"]), report["rows"], report["compared"]) == (1, 64, 64)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    done = mgm("duplicates", "--of", tmp_path / "broken.jpg", cwd=home)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(f"mgm: '{tmp_path}/broken.jpg' ")
    assert done.stderr.count(b"\n") == 1


def test_what_is_no_duplicate_is_remembered(home, tmp_path):
    seen = tmp_path / "seen.jsonl"
    images = (home / "photos" / "disc" / "00.jpg", home / "photos" / "copies" / "again.jpg")
    done = run("duplicates", "--uri", home / "mgm.db", "--ignore", seen, "--not-duplicates", *images)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"mgm: added 1 pair to {seen}\n")
    done = run("duplicates", "--uri", home / "mgm.db", "--distance", "24", "--ignore", seen)
    assert "again.jpg" not in done.stdout
    assert "1 pair left out as no duplicates" in done.stdout.splitlines()


def test_the_page_shows_the_groups_and_a_placeholder_for_what_is_gone(home, tmp_path):
    done = mgm("duplicates", "--precision", "0.9", "--json", "--html", tmp_path / "page.html", cwd=home)
    assert done.stderr.decode().splitlines()[-1] == f"mgm: wrote {tmp_path}/page.html"
    groups = json.loads(done.stdout)["groups"]
    members = [member for group in groups for member in group["members"]]
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.open
    assert not page.all("script")
    assert "http://" not in html
    assert "https://" not in html
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in page.all("img"))
    assert len(page.all("img")) == len(members) - 1
    assert [attrs["aria-label"] for attrs in page.all("span", "missing")] == ["same.jpg: cannot be read"]
    assert len(page.all("section", "group")) == len(groups)
    assert [attrs["title"] for attrs in page.all("h3")] == [escape_controls(member["path"]) for member in members]
    assert len(page.all("li", "kept")) == sum(member["keep"] for member in members)


def test_over_tcp_too(home, tmp_path):
    shutil.copy(home / "mgm.db", tmp_path / "served.db")
    with lite_server(tmp_path / "served.db") as server:
        done = mgm("duplicates", "--uri", server.uri, "--distance", "3", "--json", cwd=home)
    local = json.loads(mgm("duplicates", "--distance", "3", "--json", cwd=home).stdout)
    assert json.loads(done.stdout) | {"seconds": 0} == local | {"seconds": 0}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--distance", "3", "--precision", "0.9"], 2, "give one of them"),
        (["--of", "a.jpg", "--within", "."], 2, "omit --within and --new-since"),
        (["--new-since", "yesterday"], 2, "'yesterday' is neither a time span"),
        (["--new-since", "999999999w"], 2, "is neither a time span"),
        (["--distance", "257"], 1, "distance is 257, expected a number of bits from 0 to 256"),
        (["--precision", "nan"], 1, "precision is nan, expected a number between 0 and 1"),
        (["--within", "/nowhere"], 1, "there is no image in 'images' under /nowhere"),
        (["--keep", "me"], 2, "'me' is not one of"),
        (["--not-duplicates", "a.jpg", "b.jpg"], 2, "--not-duplicates takes images, and the file to add them to"),
        (["--ignore", "x", "a.jpg", "b.jpg"], 2, "--not-duplicates takes images, and the file to add them to"),
        (["--ignore", "none.jsonl"], 1, "'none.jsonl' does not exist, expected a file of pairs"),
        (["--distance", "0", "--html", "/dev/null/page.html"], 2, "'/dev/null/page.html' cannot be written"),
        (["--uri", "other.db"], 1, "there is no index at other.db"),
    ],
)
def test_bad_input_is_one_sentence(home, arguments, code, message):
    done = mgm("duplicates", *arguments, cwd=home)
    assert done.returncode == code
    error = " ".join(done.stderr.decode().replace("│", " ").split())
    assert message in error
    assert "Traceback" not in error


def test_the_rules_are_those_of_the_library():
    assert [rule.value for rule in Keep] == list(KEEP)


def test_a_collection_without_fine_is_refused(tmp_path):
    schema = Schema(granularities=(Granularity(name="coarse", bits=64), Granularity(name="mid", bits=128)))
    store = open_store(MilvusConfig(str(tmp_path / "mgm.db"), collection=schema.collection))
    store.create(Description(schema, "0" * 16))
    store.close()
    done = mgm("duplicates", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "mgm: near-duplicates need the granularity 'fine', 'images' has coarse, mid; ingest into a "
        "collection whose schema has 'fine'\n"
    )


def test_an_empty_index_is_said_to_be_empty(tmp_path):
    store = open_store(MilvusConfig(str(tmp_path / "mgm.db"), collection="images"))
    store.create(Description(Schema(), "0" * 16))
    store.close()
    done = mgm("duplicates", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "mgm: there is no image in 'images', expected two or more to compare; add some with mgm ingest\n"
    )
