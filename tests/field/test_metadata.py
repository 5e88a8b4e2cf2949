"""Tables of metadata as users have them: later ones, of one row, with paths of another machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.conftest import make_photos
from tests.in_process import mgm

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = "version: 1\nfields: [{name: kind, type: string}, {name: price, type: float}, {name: sold, type: bool}]\n"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Three images in Milvus Lite, all of them named by a table."""
    make_photos(tmp_path / "shop", 1)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    (tmp_path / "all.csv").write_text(
        "path,kind,price,sold\nshop/disc/00.jpg,a,1.5,yes\nshop/stripes/00.jpg,b,2.5,no\nshop/blocks/00.jpg,c,3.5,Yes\n"
    )
    done = mgm("ingest", "shop", "--schema", "schema.yaml", "--metadata", "all.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


def values(folder: Path) -> dict[str, tuple[object, ...]]:
    done = mgm("query", "shop/disc/00.jpg", "--json", "-k", "9", cwd=folder)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["path"].split("/")[-2]: (row["kind"], row["price"], row["sold"]) for row in rows}


ALL = {"disc": ("a", 1.5, True), "stripes": ("b", 2.5, False), "blocks": ("c", 3.5, True)}


def test_a_table_of_one_row_changes_one_image(shop: Path) -> None:
    (shop / "one.csv").write_text("path,kind,price,sold\nshop/disc/00.jpg,z,9,no\n")
    for options in (["--dry-run"], []):
        done = mgm("ingest", "shop", "--metadata", "one.csv", "--json", *options, cwd=shop)
        report = json.loads(done.stdout)
        assert (report["updated"], report["unchanged"]) == (1, 2)
    assert values(shop) == ALL | {"disc": ("z", 9.0, False)}


@pytest.mark.parametrize("path", ["elsewhere/disc/00.jpg", r"C:\shop\disc\00.jpg", "SHOP/DISC/00.JPG", "00.jpg"])
def test_a_table_that_names_no_image_is_refused(path: str, shop: Path) -> None:
    (shop / "other.csv").write_text(f"path,kind,price,sold\n{path},z,9,no\n")
    done = mgm("ingest", "shop", "--metadata", "other.csv", cwd=shop)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "names none of the 3 images" in done.stderr
    assert "/00.jpg" in done.stderr
    assert values(shop) == ALL


def test_reset_is_explicit(shop: Path) -> None:
    (shop / "one.csv").write_text("path,kind,price,sold\nshop/disc/00.jpg,z,9,no\n")
    assert mgm("ingest", "shop", "--reset-metadata", cwd=shop).returncode == 2
    assert mgm("ingest", "shop", "--metadata", "one.csv", "--reset-metadata", cwd=shop).returncode == 0
    assert values(shop) == {"disc": ("z", 9.0, False), "stripes": (None, None, None), "blocks": (None, None, None)}


def test_rows_without_an_image_and_images_without_a_row_are_said(shop: Path) -> None:
    (shop / "two.csv").write_text("path,kind,price,sold\nshop/disc/00.jpg,z,9,no\nC:\\\\pics\\\\00.JPG,y,8,no\n")
    for options in (["--dry-run"], []):
        done = mgm("ingest", "shop", "--metadata", "two.csv", *options, cwd=shop)
        assert done.returncode == 0, done.stderr
        assert "1 of 2 rows of the table name no image: C:" in done.stdout
        assert "(nearest image: " in done.stdout
        assert "2 images have no row in the table, such as " in done.stdout
    table = json.loads(mgm("ingest", "shop", "--metadata", "two.csv", "--json", cwd=shop).stdout)["table"]
    assert (table["rows"], table["matched"], table["without_row"]) == (2, 1, 2)
