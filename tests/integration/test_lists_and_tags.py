"""Images to take along, and tags of one's own: nothing of a row is lost, and filters find them."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from typing import TYPE_CHECKING

import pytest

from mg_milvus.bulk.lists import archive_chunks, archive_names, json_of, paths_of, table_of
from mg_milvus.errors import MgMilvusError, QueryError
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Row
from tests.conftest import kind_of_image
from tests.in_process import mgm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIELDS = "version: 1\nfields: [{name: kind, type: string}]\nregions: {bits: 64, scales: [{size: 0.7, grid: 2}]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listed")
    for n, kind in enumerate(("disc", "stripes", "blocks", "disc")):
        (folder / "photos" / kind).mkdir(parents=True, exist_ok=True)
        kind_of_image(kind, n).save(folder / "photos" / kind / f"{n}.jpg")
    (folder / "kinds.csv").write_text("path,kind\nphotos/disc/0.jpg,round\n")
    return folder


@pytest.fixture(scope="module")
def lite(folder: Path) -> Iterator[ImageIndex]:
    """Four images with regions and a field, in a Milvus Lite file."""
    with ImageIndex.open(folder / "own.db", schema=Schema.from_yaml(FIELDS)) as index:
        index.ingest(folder / "photos", metadata=folder / "kinds.csv")
        yield index


def everything(index: ImageIndex, row_id: str) -> tuple[Row, dict, dict]:
    row = index.row(row_id)
    codes = {name: code.tobytes() for name, code in index.codes(row_id).items()}
    return row, codes, index.session.store.regions.codes([row_id])


def test_a_tag_changes_nothing_else(lite: ImageIndex, folder: Path) -> None:
    disc, stripes = (str(folder / "photos" / name) for name in ("disc/0.jpg", "stripes/1.jpg"))
    before, codes, regions = everything(lite, disc)
    assert lite.tag([disc, stripes], ["beach", " to_print "]) == 2
    after, *rest = everything(lite, disc)
    assert after.fields == {**before.fields, "user_tags": "|beach|to_print|"}
    assert before.fields["kind"] == "round"
    assert rest == [codes, regions]
    assert (after.path, after.size, after.mtime_ns, after.tags) == (
        before.path,
        before.size,
        before.mtime_ns,
        before.tags,
    )
    assert lite.tag([disc], ["Beach"]) == 0  # it has it
    found = [row.path for row in lite.images(filter='user_tags == "beach"', order_by="path")]
    assert found == [disc, stripes]
    assert lite.count('user_tags == "to-print"') == 0  # the underscore is one, and not any character
    assert lite.count('user_tags in ["beach", "x"] and kind == "round"') == 1
    assert lite.count({"user_tags": "beach"}) == 2
    assert {tag: n for tag, n in lite.tags().items() if tag in {"beach", "to_print"}} == {"beach": 2, "to_print": 2}
    assert lite.query(disc, k=1)[0].fields["user_tags"] == ["beach", "to_print"]
    # An ingest keeps them, also one that resets what a table does not say, and one of a changed file.
    kind_of_image("stripes", 9).save(stripes)
    lite.ingest(folder / "photos", metadata=folder / "kinds.csv", reset_metadata=True)
    assert lite.count('user_tags == "beach"') == 2
    assert lite.tag([disc, stripes], remove=["BEACH", "to_print"]) == 2
    assert lite.row(disc).fields["user_tags"] in {None, ""}
    assert lite.count('user_tags == "beach"') == 0


@pytest.mark.parametrize("tag", ["", "  ", "a|b", "a\nb", "x" * 101, None])
def test_what_is_no_tag_is_refused(lite: ImageIndex, folder: Path, tag: str) -> None:
    with pytest.raises(QueryError, match=r"expected 1 to 100 printable characters without \|"):
        lite.tag([folder / "photos" / "disc" / "0.jpg"], [tag])


def test_a_row_has_room_for_so_many_tags(lite: ImageIndex, folder: Path) -> None:
    with pytest.raises(QueryError, match="at most 4,096 fit"):
        lite.tag([folder / "photos" / "disc" / "0.jpg"], [f"{n:0100}" for n in range(41)])


def row(path: str, **fields: object) -> Row:
    return Row("0" * 32, path, 3, 5, 4, 2, "ff", {}, fields)


def test_lists_hold_paths_as_the_disk_has_them() -> None:
    rows = [row("/a/b c.jpg"), row("file:///a/%FF.jpg"), row("s3://bucket/x.jpg")]
    assert paths_of(rows) == b"/a/b c.jpg\n/a/\xff.jpg\ns3://bucket/x.jpg\n"
    assert paths_of([row("/a\nb.jpg")], null=True) == b"/a\nb.jpg\0"
    with pytest.raises(QueryError, match="holds a line break"):
        paths_of([row("/a\nb.jpg")])


def test_tables_hold_all_fields() -> None:
    rows = [row("/a.jpg", price=2.5, user_tags="|x|y|"), row('/b,".jpg', price=None, user_tags=None)]
    first, second = csv.DictReader(io.StringIO(table_of(rows)))
    assert first == {
        "id": "0" * 32, "path": "/a.jpg", "size": "3", "mtime_ns": "5", "taken": "5", "width": "4", "height": "2",
        "content_hash": "ff", "tags": "", "price": "2.5", "user_tags": "x; y",
    }  # fmt: skip
    assert (second["path"], second["price"], second["user_tags"]) == ('/b,".jpg', "", "")
    assert [each["user_tags"] for each in json.loads(json_of(rows))] == [["x", "y"], []]


def test_names_in_an_archive_differ() -> None:
    rows = [row("/p/2023/a.jpg"), row("/p/2024/a.jpg"), row("file:///p/2024/%FF.jpg"), row("/p/MISSING.txt")]
    assert archive_names(rows) == ["2023/a.jpg", "2024/a.jpg", "2024/\\xff.jpg", "MISSING (2).txt"]
    assert archive_names([row("/p/a.jpg"), row("/p/a.jpg")]) == ["a.jpg", "a (2).jpg"]


def test_an_archive_holds_what_was_ingested(lite: ImageIndex, folder: Path) -> None:
    photos = folder / "photos"
    rows = lite.images(order_by="path")
    changed = photos / "blocks" / "2.jpg"
    content = changed.read_bytes()
    changed.write_bytes(content + b"more")
    try:
        failures: list = []
        data = b"".join(archive_chunks(rows, failures))
    finally:
        changed.write_bytes(content)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["disc/0.jpg", "disc/3.jpg", "stripes/1.jpg", "MISSING.txt"]
        assert archive.read("disc/0.jpg") == (photos / "disc" / "0.jpg").read_bytes()
        assert archive.read("MISSING.txt").decode() == f"{changed}: has another content than when it was ingested\n"
    assert [failure.path for failure in failures] == [str(changed)]


def test_the_commands_do_the_same(lite: ImageIndex, folder: Path) -> None:
    uri = ("--uri", str(folder / "own.db"))
    assert mgm("tag", "photos/disc/0.jpg", "--add", "beach", *uri, cwd=folder).stdout == "1 image changed\n"
    listed = mgm("list", "--filter", 'user_tags == "beach"', *uri, cwd=folder)
    assert listed.stdout == f"{folder}/photos/disc/0.jpg\n"
    table = mgm("list", "--format", "csv", "--order-by=-path", "--limit", "1", *uri, cwd=folder).stdout
    assert [each["path"] for each in csv.DictReader(io.StringIO(table))] == [f"{folder}/photos/stripes/1.jpg"]
    every = json.loads(mgm("list", "--format", "json", *uri, cwd=folder).stdout)
    assert [each["user_tags"] for each in every] == [[], ["beach"], [], []]
    done = mgm("list", "photos/disc/0.jpg", "--zip", "one.zip", *uri, cwd=folder)
    assert done.returncode == 0
    assert zipfile.ZipFile(folder / "one.zip").namelist() == ["0.jpg"]
    assert "one.zip' exists" in mgm("list", "--zip", "one.zip", *uri, cwd=folder).stderr.replace("\n", "")
    assert mgm("tag", "--filter", 'user_tags == "beach"', "--remove", "beach", *uri, cwd=folder).returncode == 0
    assert mgm("list", "--filter", 'user_tags == "beach"', *uri, cwd=folder).stdout == ""
    listing = ("list", "a.jpg", "--filter", "size > 0")
    for wrong in (("tag", "a.jpg"), ("tag", "--add", "x"), listing, ("list", "--print0", "--zip", "x.zip")):
        assert mgm(*wrong, *uri, cwd=folder).returncode == 2


def test_a_command_counts_the_values_of_a_field(lite: ImageIndex, folder: Path) -> None:
    uri = ("--uri", folder / "own.db")
    assert mgm("facets", "kind", *uri, cwd=folder).stdout == "3  -\n1  round\n"
    folders = mgm("facets", "folder", "--filter", 'path like "%/disc/%"', "--json", *uri, cwd=folder)
    assert json.loads(folders.stdout) == [{"value": str(folder / "photos" / "disc"), "count": 2}]
    assert json.loads(mgm("facets", "kind", "--json", *uri, cwd=folder).stdout)[0] == {"value": None, "count": 3}
    unknown = mgm("facets", "colour", *uri, cwd=folder)
    assert unknown.returncode == 1
    assert "'colour'" in unknown.stderr


def test_what_is_not_indexed_is_said(lite: ImageIndex) -> None:
    with pytest.raises(MgMilvusError, match="neither the id nor the path"):
        lite.tag(["/nowhere.jpg"], ["x"])
