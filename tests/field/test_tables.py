"""Tables of metadata without a schema: columns with the types of their cells, and columns that come later."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mg_milvus import session
from mg_milvus.index import ImageIndex
from tests.conftest import make_photos
from tests.in_process import mgm

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

PRODUCTS = '''path,Name,Price (EUR),In stock,year,ZIP,id
disc/00.jpg,Lamp,1.5,yes,1990,01234,7
stripes/00.jpg,"Rug ""b""",2,no,,,8
'''
LATER = """path,colour,stars,sold
disc/00.jpg,red,4.5,yes
blocks/00.jpg,blue,3,no
"""
TYPES = {
    "Name": "string", "Price_EUR": "float", "In_stock": "bool", "year": "int", "ZIP": "string", "id_": "int",
}  # fmt: skip
LATER_TYPES = {"colour": "string", "sold": "bool", "stars": "float"}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Three images, one of them without a row, and their tables; nothing is ingested."""
    make_photos(tmp_path / "shop", 1)
    (tmp_path / "shop" / "products.csv").write_text(PRODUCTS)
    (tmp_path / "later.csv").write_text(LATER)
    return tmp_path


@pytest.fixture
def extended(shop: Path) -> Path:
    """The shop, ingested with its products, and again with the later table."""
    for table in ("shop/products.csv", "later.csv"):
        done = mgm("ingest", "shop", "--metadata", table, cwd=shop)
        assert done.returncode == 0, done.stderr
    return shop


def fields_of(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Folder of an image -> the values of its own fields, as a query prints them."""
    done = mgm("query", "shop/disc/00.jpg", "--json", "-k", "9", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        row["path"].split("/")[-2]: {n: v for n, v in row.items() if n in TYPES | LATER_TYPES} for row in rows
    }  # fmt: skip


def types_of(folder: Path) -> dict[str, str]:
    info = json.loads(mgm("info", "--json", cwd=folder).stdout)
    return {field["name"]: field["type"] for field in info["schema"]["fields"]}


PRODUCTS_OF = {
    "disc": {"Name": "Lamp", "Price_EUR": 1.5, "In_stock": True, "year": 1990, "ZIP": "01234", "id_": 7},
    "stripes": {"Name": 'Rug "b"', "Price_EUR": 2.0, "In_stock": False, "year": None, "ZIP": None, "id_": 8},
    "blocks": dict.fromkeys(TYPES),
}
LATER_OF = {
    "disc": {"colour": "red", "stars": 4.5, "sold": True},
    "stripes": dict.fromkeys(LATER_TYPES),
    "blocks": {"colour": "blue", "stars": 3.0, "sold": False},
}
ALL_OF = {name: PRODUCTS_OF[name] | LATER_OF[name] for name in PRODUCTS_OF}


def test_a_new_index_takes_the_columns_of_its_table(shop: Path) -> None:
    dry = mgm("ingest", "shop", "--metadata", "shop/products.csv", "--dry-run", cwd=shop)
    done = mgm("ingest", "shop", "--metadata", "shop/products.csv", cwd=shop)
    said = (
        "New columns: Name (string), Price_EUR (float, from 'Price (EUR)'), In_stock (bool, from 'In stock'), "
        "year (int), ZIP (string), id_ (int, from 'id')\n"
    )
    assert said in dry.stdout
    assert said in done.stdout
    assert types_of(shop) == TYPES
    assert fields_of(shop) == PRODUCTS_OF
    assert fields_of(shop, "--filter", "In_stock == true and Price_EUR < 2").keys() == {"disc"}
    assert fields_of(shop, "--filter", "year is null").keys() == {"stripes", "blocks"}


def test_a_later_table_adds_columns_and_nothing_is_encoded(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ImageIndex.open(shop / "mgm.db") as index:
        index.ingest(shop / "shop", metadata=shop / "shop" / "products.csv")
        before = index.codes(shop / "shop/disc/00.jpg")
        encoder = index.session.encoder
        monkeypatch.setattr(encoder, "prepare", lambda *_: pytest.fail("an image is encoded again"))
        report = index.ingest(shop / "shop", metadata=shop / "later.csv")
        assert report.table is not None
        assert {c.name: c.type for c in report.table.columns if c.new} == LATER_TYPES
        assert (report.added, report.updated, report.unchanged) == (0, 2, 1)
        after = index.codes(shop / "shop/disc/00.jpg")
        assert {name: code.tobytes() for name, code in after.items()} == {n: c.tobytes() for n, c in before.items()}
        assert {row.path.split("/")[-2]: dict(row.fields) for row in index.sample(9)} == ALL_OF
        assert index.count({"colour": "red", "stars": (">", 4)}) == 1
        again = index.ingest(shop / "shop", metadata=shop / "later.csv")
        assert (again.updated, again.unchanged) == (0, 3)


def test_added_columns_are_filtered_shown_and_kept(extended: Path) -> None:
    assert types_of(extended) == TYPES | LATER_TYPES
    assert fields_of(extended) == ALL_OF
    assert "stars (float)" in mgm("info", cwd=extended).stdout
    for where, found in (
        ("stars > 3.5", {"disc"}),
        ("sold == false", {"blocks"}),
        ('colour in ["red", "blue"] and stars < 4', {"blocks"}),
        ("colour is null", {"stripes"}),
        ('not (colour like "r%")', {"blocks"}),
    ):
        assert fields_of(extended, "--filter", where).keys() == found, where
    # An ingest without a table, one with the first table, a changed image and a moved folder keep them.
    (extended / "shop/disc/00.jpg").write_bytes((extended / "shop/stripes/00.jpg").read_bytes())
    assert mgm("ingest", "shop", cwd=extended).returncode == 0
    assert mgm("ingest", "shop", "--metadata", "shop/products.csv", cwd=extended).returncode == 0
    assert fields_of(extended) == ALL_OF
    (extended / "shop").rename(extended / "moved")
    assert mgm("relocate", "shop", "moved", cwd=extended).returncode == 0
    (extended / "moved").rename(extended / "shop")
    assert mgm("ingest", "shop", cwd=extended).returncode == 0
    assert mgm("delete", "--filter", 'path like "%moved%"', "--yes", cwd=extended).returncode == 0
    assert fields_of(extended) == ALL_OF


def test_a_copy_of_the_index_has_the_added_columns(extended: Path) -> None:
    assert mgm("refit", "--to", "other", cwd=extended).returncode == 0
    assert fields_of(extended, "--collection", "other") == ALL_OF
    for command in (("export", "codes"), ("load", "codes", "--uri", "new.db")):
        done = mgm(*command, *(() if "--uri" in command else ("--collection", "images")), cwd=extended)
        assert done.returncode == 0, done.stderr
    assert fields_of(extended, "--uri", "new.db") == ALL_OF
    # Into a collection that lacks them, they are added.
    (extended / "few.csv").write_text("path,Name\nshop/disc/00.jpg,Lamp\n")
    with ImageIndex.open(extended / "few.db", encoder=next((extended / "codes").glob("encoder-*"))) as few:
        few.ingest(extended / "shop", metadata=extended / "few.csv")
    assert mgm("load", "codes", "--uri", "few.db", cwd=extended).returncode == 0
    assert fields_of(extended, "--uri", "few.db") == ALL_OF


def test_another_program_sees_the_columns_and_loses_none(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_CHECKED_FOR", 0.0)
    from tests.servers import lite_server

    with (
        lite_server(shop / "shared.db") as server,
        ImageIndex.open(server.uri) as first,
        ImageIndex.open(server.uri) as second,
    ):
        first.ingest(shop / "shop", metadata=shop / "shop" / "products.csv")
        assert second.count() == 3
        first.ingest(shop / "shop", metadata=shop / "later.csv")
        assert second.count("stars > 1") == 2
        image = shop / "shop/blocks/00.jpg"
        image.write_bytes((shop / "shop/disc/00.jpg").read_bytes())
        second.ingest(shop / "shop")  # encodes the image again
        assert first.row(image).fields == ALL_OF["blocks"]


def test_a_schema_decides_which_columns_are_taken(shop: Path) -> None:
    (shop / "schema.yaml").write_text("version: 1\nfields: [{name: Name, type: string}]\n")
    with_schema = ("ingest", "shop", "--schema", "schema.yaml", "--metadata")
    done = mgm(*with_schema, "shop/products.csv", cwd=shop)
    assert "Columns not stored: Price (EUR) (the schema has no such field), In stock (" in done.stdout
    assert types_of(shop) == {"Name": "string"}
    refused = mgm(*with_schema, "later.csv", cwd=shop)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "has no column for the schema's field 'Name'" in refused.stderr
    # A column that the schema names later is added; without the schema, the table's own are.
    (shop / "schema.yaml").write_text("version: 1\nfields: [{name: Name, type: string}, {name: year, type: float}]\n")
    diff = mgm("schema", "diff", "schema.yaml", "--json", cwd=shop)
    assert [json.loads(line)["consequence"] for line in diff.stdout.splitlines()] == ["none"]
    assert mgm(*with_schema, "shop/products.csv", cwd=shop).returncode == 0
    assert types_of(shop) == {"Name": "string", "year": "float"}
    assert mgm("ingest", "shop", "--metadata", "later.csv", cwd=shop).returncode == 0
    assert types_of(shop) == {"Name": "string", "year": "float"} | LATER_TYPES
    done = mgm(*with_schema, "shop/products.csv", cwd=shop)  # which the schema does not name
    assert done.returncode == 0, done.stderr
    assert fields_of(shop)["disc"] == {"Name": "Lamp", "year": 1990.0, **LATER_OF["disc"]}


def test_a_misspelt_column_is_said_to_be_new(extended: Path) -> None:
    (extended / "wrong.csv").write_text("path,colours\nshop/disc/00.jpg,green\n")
    done = mgm("ingest", "shop", "--metadata", "wrong.csv", "--dry-run", cwd=extended)
    assert "New columns: colours (string, not colour, which the table lacks)\n" in done.stdout
    assert types_of(extended) == TYPES | LATER_TYPES


def test_values_of_another_type_are_refused_and_nothing_changes(extended: Path) -> None:
    (extended / "wrong.csv").write_text("path,stars,new\nshop/disc/00.jpg,many,1\n")
    done = mgm("ingest", "shop", "--metadata", "wrong.csv", cwd=extended)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "line 2, column 'stars': 'many' is not a finite number (float)" in done.stderr
    assert types_of(extended) == TYPES | LATER_TYPES


def test_a_table_that_names_no_image_adds_no_column(shop: Path) -> None:
    assert mgm("ingest", "shop", "--metadata", "shop/products.csv", cwd=shop).returncode == 0
    (shop / "later.csv").write_text("path,colour\nelsewhere/x.jpg,red\n")
    assert mgm("ingest", "shop", "--metadata", "later.csv", cwd=shop).returncode == 1
    assert types_of(shop) == TYPES


def test_the_page_filters_and_shows_added_columns(extended: Path) -> None:
    testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra web: pip install 'mg-milvus[web]'")
    from mg_milvus.web.app import create_app
    from mg_milvus.web.security import WebSettings
    from mg_milvus.web.state import page_facts

    settings = WebSettings(thumbnail_folder=extended / "thumbnails")
    with (
        ImageIndex.open(extended / "mgm.db") as index,
        testclient.TestClient(create_app(index, settings), base_url="http://127.0.0.1:8000") as client,
    ):
        facts = page_facts(client.app.state.mgm)
        assert {field["name"]: field["type"] for field in facts["fields"]} == TYPES | LATER_TYPES
        choices = index.choices()
        assert (choices["colour"], choices["stars"]) == (["blue", "red"], [3.0, 4.5])
        listed = client.get("/api/sample", params={"count": 9, "filter": "stars > 1 and sold == true"}).json()
        assert [(row["colour"], row["stars"]) for row in listed] == [("red", 4.5)]
        found = client.get("/api/query", params={"id": listed[0]["id"], "filter": 'colour == "blue"'}).json()
        assert [hit["stars"] for hit in found["hits"]] == [3.0]
