"""Whatever is written, with names that strangers chose: one table of names, and every writer.

Pages and notebooks: no element, attribute, link or direction of text comes from a name. Terminals: no escape sequence,
no second line. Logs, JSON, metrics, YAML: each stays what it is, and is read back as it was.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
import time
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import mg_milvus
from mg_milvus.bulk.lists import table_of
from mg_milvus.cli import log
from mg_milvus.cli.console import ProgressView, print_failures, shorten
from mg_milvus.cli.evaluate import print_table
from mg_milvus.cli.log import log_error, log_info
from mg_milvus.cli.query import print_hits
from mg_milvus.duplicates.report import DuplicateGroup, DuplicateReport, GroupMember, duplicates_page
from mg_milvus.evaluation.report import ReportData, write_evaluation_report
from mg_milvus.files import escape_controls, file_link
from mg_milvus.html.pages import QueryResult, QuerySettings, render, result_page
from mg_milvus.html.report import ExampleQuery, ExampleResult
from mg_milvus.ingest.metrics import IngestMetrics
from mg_milvus.records import Failure, Hit
from mg_milvus.results import Hits, IngestReport
from mg_milvus.schema.models import ExtraField, Granularity, Schema
from mg_milvus.store.base import Row
from mg_milvus.training.report import write_training_report

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = {
    "element": "<script>alert(1)</script>",
    "attribute": "\"><img src=x onerror=alert(1)>' onmouseover='alert(1)",
    "end of the style": "</style><script>alert(1)</script><!--",
    "template": "{{ 7 * 7 }}{% include 'x' %}${7*7}",
    "script URI": "javascript:alert(1)",
    "data URI": "data:text/html,<script>alert(1)</script>",
    "reversed": "holiday\u202egpj.exe",
    "isolated": "a\u2066b\u2069c\u200e\u200fd",
    "colours": "\x1b[31mred\x1b[0m",
    "title of the terminal": "\x1b]0;owned\x07",
    "one byte escapes": "\x9b31m\x9d0;owned\x9c",
    "lines": "two\nlines\r\nand\vmore\f\x85\u2028\u2029end",
    "backspaces": "shown\b\b\b\b\bhidden\x7f",
    "zero": "a\0b",
    "bytes": "caf\udce9\udc80",
    "half of a character": "a\ud800b",
    "formula": '=HYPERLINK("http://example.invalid","x")',
    "markup of the terminal": "[bold red]x[/] :smile: [link=http://example.invalid]x[/link]",
    "markdown": "[x](javascript:alert(1)) ![x](http://example.invalid)",
    "mathematics": "$\\frac{1}{0}$ $x",
    "joined": "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "percent": "100%41.jpg?x#y",
    "long": "x" * 10_000,
    "no space": "\u00a0\u3000\u00ad\ufeff",
}
BITS = {"coarse": 64, "fine": 256}


def a_hit(rank: int, path: str) -> Hit:
    return Hit(rank, "0" * 32, path, 0.5, {"coarse": 16, "fine": 3}, {"coarse": 1.5, "fine": 2})


def duplicates(name: str) -> DuplicateReport:
    keep = GroupMember("0" * 32, f"/p/{name}", 1, 10**18, 4, 3, None, {"coarse": 0, "fine": 0})
    goes = GroupMember("1" * 32, name, 1, 10**18, 4, 3, keep.path, {"coarse": 1, "fine": 2})
    also = GroupMember("2" * 32, f"//host/{name}", 1, 10**18, 4, 3, None, {"coarse": 1, "fine": 2})
    return DuplicateReport(50, 1, 12, {"coarse": 9}, 0.99, 3, 0.02, name, (DuplicateGroup((keep, also, goes), 8),), 1.0)


def results(name: str, _: Path) -> str:
    hits = [a_hit(1, f"/p/{name}"), a_hit(2, name), a_hit(3, f"//host/{name}")]
    asked = QueryResult(name, Path("/nowhere"), hits)
    return result_page([asked, asked], QuerySettings(name, {**BITS, name: 8}, {name: 1.0}, name, name))


def evaluation(name: str, folder: Path) -> str:
    curve = np.array([0, 0.5, 1]), np.array([1, 0.5, 0.2])
    counts = np.array([3, 2, 1]), np.array([1, 2, 3])
    shown = ExampleQuery(
        f"/p/{name}", 0.5, [ExampleResult(name, name, True), ExampleResult(f"//host/{name}", name, False)]
    )
    data = ReportData(
        name, (f"protocol: {name}", f"folder: {name}"), {name: {name: 0.5}}, {name: curve}, {name: counts}, {name: 0.5},
        0.4, {name: {name: 0.1}}, (shown,),
    )  # fmt: skip
    return write_evaluation_report(data, folder / "out").read_bytes().decode()


def training(name: str, folder: Path) -> str:
    report = SimpleNamespace(
        history=[{"epoch": 1.0, name: 2.0, f"map_{name}": 0.5, "map_mid": 0.2, "held_out": 0.4, "seconds": 1.0}],
        best_epoch=1, fingerprint=name, images=3, held_out=1, labels={name: 3}, epochs=1,
    )  # fmt: skip
    page = write_training_report(report, folder / "out", title=name, setup=[(name, name)])  # type: ignore[arg-type]
    return page.read_bytes().decode()


def ingest(name: str, _: Path) -> str:
    return IngestReport(3, 1, 1, 0, 0, (Failure(name, name),), 1.0)._repr_html_()


def evaluation_in_a_notebook(name: str, _: Path) -> str:
    card = {"path": name, "name": name, "badge": name, "image": {"uri": ""}}
    return render("evaluation", setup=[name], tables=[([name], [(name, [name])])], groups=[(name, [card])])


PAGES: dict[str, Callable[[str, Path], str]] = {
    "results": results,
    "duplicates": lambda name, _: duplicates_page(duplicates(name), collection=name, bits=BITS),
    "evaluation": evaluation,
    "training": training,
    "hits in a notebook": lambda name, _: Hits([a_hit(1, name), a_hit(2, f"/p/{name}")], BITS)._repr_html_(),
    "ingest in a notebook": ingest,
    "duplicates in a notebook": lambda name, _: duplicates(name)._repr_html_(),
    "group in a notebook": lambda name, _: duplicates(name).groups[0]._repr_html_(),
    "evaluation in a notebook": evaluation_in_a_notebook,
}


DRAWN = {
    "svg", "g", "path", "defs", "use", "text", "tspan", "rect", "clippath", "id", "d", "style", "x", "y", "width",
    "height", "viewbox", "role", "aria-label", "aria-hidden", "xmlns", "xmlns:xlink", "version", "transform",
    "clip-path", "xlink:href", "class",
}  # fmt: skip
"""Elements and attributes of plots: none of them does anything."""


class Skeleton(HTMLParser):
    """Which elements and attributes a page has, in order; its text; its links.

    Inside of plots it is not told which there are, since that goes with the length of words, but what kinds there are.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.shape: list[tuple[str, ...]] = []
        self.text = ""
        self.plots = 0
        self.drawn: set[str] = set()
        self.links: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.plots += tag == "svg"
        if self.plots:
            self.drawn |= {tag, *(name for name, _ in attributes)}
        else:
            self.shape.append((tag, *(name for name, _ in attributes)))
        for name, value in attributes:
            self.text += f" {value}"
            if name in {"href", "src", "action", "xlink:href"}:
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if not self.plots:
            self.shape.append((f"/{tag}",))
        self.plots -= tag == "svg"

    def handle_comment(self, data: str) -> None:
        if not self.plots:  # matplotlib repeats its texts in comments
            self.shape.append(("!--",))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.fixture(scope="module")
def plain_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Skeleton]:
    """Every page with a name that does no harm."""
    return {page: Skeleton(write("name", tmp_path_factory.mktemp("plain"))) for page, write in PAGES.items()}


@pytest.mark.filterwarnings("ignore:Glyph.*:UserWarning")  # matplotlib's font lacks some of the characters
@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind != "half of a character"])  # no file has such a name
@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_same_elements_whatever_the_names(
    page: str, kind: str, tmp_path: Path, plain_pages: dict[str, Skeleton]
) -> None:
    name = NAMES[kind]
    html = PAGES[page](name, tmp_path / "hostile")
    html.encode("utf-8")
    found, plain = Skeleton(html), plain_pages[page]
    assert found.shape == plain.shape
    assert found.drawn <= DRAWN
    for link in found.links:
        assert re.match(r"file:///(?!/)[!-~]*\Z|#\w+\Z|data:image/jpeg;base64,", link), link
    assert [char for char in found.text if char != "\n" and escape_controls(char) != char] == []
    if "\n" not in escape_controls(name):
        assert escape_controls(name).replace("/", "")[-20:] in found.text.replace("/", "")


def caught(write: Callable[[], object]) -> str:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        write()
    return out.getvalue() + err.getvalue()


def a_line(name: str) -> None:
    with ProgressView() as view:
        view.print_line(name)


def groups(name: str) -> None:
    from mg_milvus.cli.duplicates import _print_group

    report = duplicates(name)
    _print_group(1, report.groups[0], report)


TERMINAL: dict[str, tuple[int, Callable[[str], object]]] = {
    "hits": (4, lambda name: print_hits(Hits([a_hit(1, name)]), BITS, title=name)),
    "failures": (3, lambda name: print_failures([Failure(name, name)])),
    "error": (1, log_error),
    "message": (1, log_info),
    "group": (5, groups),
    "figures": (5, lambda name: print_table("", {name: {name: 0.5}})),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("output", [*TERMINAL, "a line of a stage"])
def test_a_terminal_cannot_be_steered(output: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, write = TERMINAL.get(output, (0, a_line))
    text = caught(lambda: write(NAMES[kind]))
    assert [char for char in text.replace("\n", "") if not char.isprintable() and char not in "\u200c\u200d"] == []
    if lines:
        assert text.count("\n") <= lines
    assert "http://example.invalid" not in text or "example.invalid" in NAMES[kind]


@pytest.mark.parametrize("kind", NAMES)
def test_a_log_is_one_object_a_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[kind]
    log.configure([log.FLAG])

    def write() -> None:
        log_error(name, path=name)
        log_info(name, "wrote", file=name)
        log.log_failures([Failure(name, name)])

    lines = caught(write).splitlines()
    assert len(lines) == 3
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert [json.loads(line).get("message", json.loads(line).get("reason")) for line in lines] == [name] * 3


def test_the_metrics_of_an_ingest_hold_no_names() -> None:
    """Their labels are of a fixed list, so nobody who names files can add series."""
    labels = re.findall(r'(\w+)="([^"]*)"', IngestMetrics().text())
    assert {name for name, _ in labels} == {"step", "le"}
    assert {value for name, value in labels if name == "step"} == {"decode", "encode", "upsert"}


@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind != "half of a character" and kind != "bytes"])
def test_a_schema_is_read_back_as_it_was_written(kind: str) -> None:
    name = NAMES[kind]
    schema = Schema(
        granularities=(Granularity(name="coarse", bits=8),),
        fields=(ExtraField(name="label", type="string", default=name, max_length=20_000),),
    )
    text = schema.to_yaml()
    assert Schema.from_yaml(text) == schema
    assert [char for char in text.replace("\n", "") if not char.isprintable()] == []


def test_links_lead_to_files_of_this_machine_only() -> None:
    assert file_link(Path("/a/b c#?%.jpg")) == "file:///a/b%20c%23%3F%25.jpg"
    assert file_link(Path(os.fsdecode(b"/caf\xe9.jpg"))) == "file:///caf%E9.jpg"
    for other in ("/a\ud800.jpg", "//host/share.jpg", "javascript:alert(1)", "http://host/a.jpg", "a.jpg", ""):
        assert file_link(Path(other)) == ""


def test_long_paths_are_cut_in_time_that_grows_with_their_length() -> None:
    started = time.process_time()
    assert shorten("é" * 1_000_000, 80) == "…" + "é" * 79
    assert time.process_time() - started < 20


def test_tables_for_spreadsheets_hold_no_formulas() -> None:
    """A cell that begins with ``=`` is a formula there. Lists of images are all the CSV that is written.

    Their cells get an apostrophe (``lists.table_of``). Whoever adds a writer decides how its cells are defended, and
    how a path is read back as it was, and says so here.
    """
    package = Path(mg_milvus.__file__).parent
    writers = {"writer", "DictWriter", "to_csv", "write_csv", "savetxt", "to_excel"}
    found = [
        f"{file.name}: {node.attr}"
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in writers
    ]
    assert found == ["lists.py: writer"]
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "'", "plain", "a=1", ""]
    rows = [
        Row(id_, "s3://b/=x.jpg", 1, 1, 1, 1, "0" * 32, {}, {"=name": text, "number": -1})
        for id_, text in zip("0123456789a", texts, strict=True)
    ]
    header, *lines = csv.reader(io.StringIO(table_of(rows), newline=""))
    assert header[-2:] == ["'=name", "number"]
    cells = [line[-2] for line in lines]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))] == []
    assert [cell.removeprefix("'") for cell in cells] == texts
    assert {line[1] for line in lines} == {"s3://b/=x.jpg"}
    assert {line[-1] for line in lines} == {"-1"}, "numbers are no formulas"
