"""The report: one file that loads nothing else, right numbers, plots whose lengths are the numbers."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mg_milvus.errors import MissingPackageError, QueryError
from mg_milvus.evaluation.report import ReportData, write_evaluation_report
from mg_milvus.html.report import (
    RADIUS,
    RANK,
    ExampleQuery,
    ExampleResult,
    bar_plot,
    check_report,
    curve_plot,
    histogram_plot,
)
from mg_milvus.images.discover import path_text

if TYPE_CHECKING:
    from pathlib import Path

VOID = {"meta", "img", "path", "use", "rect", "br"}
SVG = "{http://www.w3.org/2000/svg}"
NOTHING = ReportData("Empty")


class Page(HTMLParser):
    """A page taken apart: elements with attributes, cells of its tables, and the text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.pieces: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)

    def all(self, tag, **wanted):
        return [attrs for name, attrs in self.elements if name == tag and wanted.items() <= attrs.items()]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("report") / "images"
    paths = [folder / f"{name}.png" for name in ("query", "near", "far")]
    folder.mkdir()
    for path, colour in zip(paths, ("red", "green", "blue"), strict=True):
        Image.new("RGB", (300, 200), colour).save(path)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def data(images: list[str]) -> ReportData:
    recall = np.array([0, 0.5, 1])
    query, near, far = images
    return ReportData(
        title="Evaluation of holidays",
        setup=("protocol: leave-one-out", "ties by expectation", "queries: 12"),
        metrics={
            "coarse": {"bits": 64, "mAP": 0.5, "mAP±": 0.125, "P@1": 0.75},
            "fine": {"bits": 1024, "mAP": 0.25, "mAP±": 0.25, "P@1": None},
            "float": {"mAP": 0.4567, "mAP±": 0.125, "P@1": float("nan")},
        },
        curves={name: (recall, np.array([1, 0.5, 0.25])) for name in ("coarse", "fine", "rank", "float")},
        by_rank={name: (np.array([1, 10, 12]), np.array([1, 0.5, 0.25])) for name in ("coarse", "fine", "float")},
        by_radius={name: (np.arange(3), np.array([0, 0.75, 0.5])) for name in ("coarse", "fine")},
        histograms={name: (np.array([4, 2, 0]), np.array([0, 2, 6])) for name in ("coarse", "fine")},
        bars={"coarse": 0.5, "fine": 0.25, "rank · object": 0.6},
        float_map=0.4567,
        health={"coarse": {"effective bits": 41.23, "collisions": 0.00004}, "joint": {"collisions": 0.0}},
        queries=(
            ExampleQuery(query, 0.2, [ExampleResult(far, "3 bits", False), ExampleResult(near, "5 bits", True)]),
            ExampleQuery(near, 0.9, [ExampleResult(query, "1 bit", True)]),
        ),
    )


@pytest.fixture(scope="module")
def html(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of ``data``, made once."""
    return write_evaluation_report(data, tmp_path_factory.mktemp("page")).read_text(encoding="utf-8")


def page_of(data: ReportData, folder: Path) -> Page:
    return Page(write_evaluation_report(data, folder).read_text(encoding="utf-8"))


def test_the_page_is_one_file_in_a_folder_that_is_made(tmp_path: Path) -> None:
    file = write_evaluation_report(NOTHING, tmp_path / "deep" / "report")
    assert file == tmp_path / "deep" / "report" / "index.html"
    assert list(file.parent.iterdir()) == [file]


def test_the_page_asks_for_nothing(html: str) -> None:
    page = Page(html)
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert all(link["href"].startswith("file:///") for link in page.all("a"))
    assert all(use["xlink:href"].startswith("#") for use in page.all("use"))
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "url(" not in re.sub(r"url\(#\w+\)", "", html)


def test_every_id_is_there_once_and_everything_pointed_at_is_there(html: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:url\(|href=")#(\w+)', html)) <= set(ids)


def test_the_page_for_phones_and_for_the_dark(html: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html
    plots = re.findall(r"<svg xmlns:xlink.*?</svg>", html, flags=re.DOTALL)
    assert len(plots) == 6
    for plot in plots:
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", plot)) <= {
            "none", "var(--ink)", "var(--soft)", "var(--line)", *(f"var(--h{index})" for index in range(6)),
        }  # fmt: skip
        assert "<style" not in plot
        assert "width=" not in plot[: plot.index(">")]


def test_the_same_data_give_the_same_bytes(data: ReportData, html: str, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    assert write_evaluation_report(data, tmp_path).read_text(encoding="utf-8") == html
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_loaded_for_a_report_only_and_never_with_its_global_part(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from mg_milvus.html import report\n"
        "before = 'matplotlib' in sys.modules\n"
        "report.curve_plot({'a': (np.arange(2), np.arange(2))}, {'a': ('h0', False)})\n"
        "print(before, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True", "False"]


def test_heading_and_setup(html: str) -> None:
    assert "<title>Evaluation of holidays</title>" in html
    assert "<li><em>protocol</em>leave-one-out</li>" in html
    assert "<li>ties by expectation</li>" in html


def test_the_table_of_figures(data: ReportData, tmp_path: Path) -> None:
    """Whole numbers stay whole, what is not known is a dash, the best fraction of a column is bold, no deviation is."""
    html = write_evaluation_report(data, tmp_path).read_text(encoding="utf-8")
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)[:3])
    assert rows == {
        "coarse": "<td>64</td><td><b>0.500</b></td><td>0.125</td><td>0.750</td>",
        "fine": "<td>1,024</td><td>0.250</td><td>0.250</td><td>–</td>",
        "float": "<td>–</td><td>0.457</td><td>0.125</td><td>–</td>",
    }


def test_health_and_collisions(html: str) -> None:
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)[3:]
    assert rows == [("coarse", "<td>41.2</td><td>4.0e-05</td>"), ("joint", "<td>–</td><td>0.000</td>")]


def test_the_key_of_the_curves(html: str) -> None:
    key = re.findall(r'<li class="([^"]*)">(\w+)</li>', html)
    over_recall, over_ranks, over_radii = key[:4], key[4:7], key[7:]
    assert over_recall == [("h0", "coarse"), ("h1", "fine"), ("h2", "rank"), ("soft dashed", "float")]
    assert over_ranks == [("h0", "coarse"), ("h1", "fine"), ("soft dashed", "float")]
    assert over_radii == [("h0", "coarse"), ("h1", "fine")]


def test_the_seventh_curve_is_dashed(tmp_path: Path) -> None:
    curve = np.array([0.0, 1.0]), np.array([1.0, 0.5])
    html = write_evaluation_report(replace(NOTHING, curves={f"c{n}": curve for n in range(7)}), tmp_path).read_text(
        "utf-8"
    )
    key = re.findall(r'<li class="([^"]*)">(\w+)</li>', html)
    assert key[0] == ("h0", "c0")
    assert key[5:] == [("h5", "c5"), ("h0 dashed", "c6")]
    assert "stroke-dasharray" in html


def test_what_the_histograms_say_in_words(html: str) -> None:
    """Same: (4, 2, 0) / 6, mean 2/6; different: (0, 2, 6) / 8, mean 14/8; both share min(1/3, 1/4) at distance 1."""
    assert Page(html).text.count("Mean 0.3 bits, others 1.8; overlap 25%.") == 2


def test_a_histogram_without_pairs_says_so(tmp_path: Path) -> None:
    page = page_of(replace(NOTHING, histograms={"mid": (np.zeros(9, int), np.ones(9, int))}), tmp_path)
    assert "There are no pairs of one of the two kinds." in page.text


def test_best_and_worst_queries(html: str, images: list[str]) -> None:
    page = Page(html)
    best, worst = page.text.split("Best queries")[1].split("Worst queries")
    assert "AP 0.900 images/near.png" in best
    assert "1 bit images/query.png" in best
    assert "AP 0.200 images/query.png" in worst
    assert worst.index("3 bits images/far.png") < worst.index("5 bits images/near.png")
    hits = [attrs["class"] for tag, attrs in page.elements if tag == "li" and attrs.get("class") in {"yes", "no"}]
    assert hits == ["yes", "no", "yes"]
    signs = [attrs["aria-label"] for attrs in page.all("svg") if attrs.get("class") == "sign"]
    assert signs == ["relevant", "not relevant", "relevant"]
    assert page.all("a", title=images[2])[0]["href"] == "file://" + images[2]
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in page.all("img")]
    assert [thumbnail.size for thumbnail in thumbnails] == [(224, 149)] * 5
    assert [np.argmax(thumbnail.getpixel((9, 9))) for thumbnail in thumbnails] == [1, 0, 0, 2, 1]


def test_of_three_queries_two_are_best_and_the_worst_comes_first(images: list[str], tmp_path: Path) -> None:
    def shown(*precisions: float) -> str:
        queries = [ExampleQuery(images[0], precision, ()) for precision in precisions]
        return " ".join(
            re.findall(r"(?:Best|Worst|0\.\d00)", page_of(replace(NOTHING, queries=queries), tmp_path).text)
        )

    assert shown(0.1, 0.9, 0.5) == "Best 0.900 0.500 Worst 0.100"
    assert shown(0.1, 0.9, 0.5, 0.2) == "Best 0.900 0.500 Worst 0.100 0.200"
    assert shown(0.3) == "Best 0.300"


def test_images_that_cannot_be_read_are_placeholders(images: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    broken, gone = str(tmp_path / "broken.png"), "/no/such/gone.png"
    hits = [ExampleResult(gone, "1 bit", False), ExampleResult(images[0], "2 bits", True)]
    page = page_of(replace(NOTHING, queries=[ExampleQuery(broken, 0.5, hits)]), tmp_path)
    missing = [attrs["aria-label"] for attrs in page.all("span", **{"class": "missing"})]
    assert missing == [f"Query {tmp_path.name}/broken.png: cannot be read", "such/gone.png: cannot be read"]
    assert len(page.all("img")) == 1


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&$\\frac$"
    curve = np.array([0.0, 1.0]), np.array([1.0, 0.5])
    counts = np.array([1, 0]), np.array([0, 1])
    image = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.new("RGB", (9, 9)).save(image)
    query = ExampleQuery(str(image), 0.5, [ExampleResult(str(image), evil, True)])
    page = page_of(
        ReportData(evil, [evil], {evil: {evil: 0.5}}, {evil: curve}, {evil: counts}, {evil: 0.5}, 0.1, {}, [query]),
        tmp_path,
    )
    assert page.all("script") == []
    assert all("onerror" not in attrs for _, attrs in page.elements)
    # Title, heading, setup, row, column, key, bar, histogram, hit: shown as they are, the bar's too.
    assert page.text.count(evil) == 9


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, "PNG")
    with open(name, "wb") as file:
        file.write(buffer.getvalue())
    path = path_text(os.fsdecode(name))
    page = page_of(replace(NOTHING, queries=[ExampleQuery(path, 0.5, ())]), tmp_path)
    assert len(page.all("img")) == 1
    assert "caf\\xe9.png" in page.text
    assert page.all("a")[0]["href"].endswith("/caf%E9.png")


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    page = page_of(NOTHING, tmp_path)
    assert page.all("section") == page.all("table") == page.all("ul") == []
    assert page.text.startswith("Empty Empty mg-milvus ")


@pytest.mark.parametrize("reference", [None, float("nan")])
def test_without_a_float_reference_nothing_is_said_of_it(reference: float | None, tmp_path: Path) -> None:
    page = page_of(replace(NOTHING, bars={"coarse": float("nan")}, float_map=reference), tmp_path)
    assert "mAP" in page.text
    assert "Dashed" not in page.text


def test_a_report_replaces_the_one_before(tmp_path: Path) -> None:
    write_evaluation_report(replace(NOTHING, title="The older one"), tmp_path)
    assert "older" not in page_of(NOTHING, tmp_path).text


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    expected = re.escape("a report needs matplotlib, which is not installed: pip install 'mg-milvus[report]'")
    for call in (lambda: check_report(tmp_path / "r"), lambda: write_evaluation_report(NOTHING, tmp_path / "r")):
        with pytest.raises(MissingPackageError, match=expected):
            call()
    assert not (tmp_path / "r").exists()


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QueryError, match=r"file' cannot be made: File exists; name a folder to write to"):
        check_report(tmp_path / "file")
    (tmp_path / "index.html").mkdir()
    with pytest.raises(QueryError, match=r"index.html' cannot be written: Is a directory"):
        write_evaluation_report(NOTHING, tmp_path)


def paths_of(svg: str, style: str) -> list[np.ndarray]:
    """The points (n, 2) of every path whose style holds this text; y grows upwards."""
    found = []
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        if style in path.get("style", "") and path.get("clip-path"):
            numbers = re.findall(r"-?[\d.]+", path.get("d", ""))
            found.append(np.array(numbers, dtype=float).reshape(-1, 2) * (1, -1))
    return found


def test_bars_are_as_long_as_their_values_and_the_line_is_at_the_reference() -> None:
    svg = bar_plot({"a": 0.2, "b": 0.8, "c": float("nan")}, {"a": "h0", "b": "h1", "c": "h1"}, 0.5)
    (first,), (second, third) = paths_of(svg, "fill: var(--h0)"), paths_of(svg, "fill: var(--h1)")
    (line,) = paths_of(svg, "stroke-dasharray")
    start = first[:, 0].min()
    assert np.ptp(second[:, 0]) == pytest.approx(4 * np.ptp(first[:, 0]), rel=1e-4)
    assert np.ptp(third[:, 0]) == 0
    assert line[0, 0] - start == pytest.approx(np.ptp(second[:, 0]) * 0.5 / 0.8, rel=1e-4)
    assert first[:, 1].mean() > second[:, 1].mean()
    texts = [text.text for text in ET.fromstring(svg).iter(f"{SVG}text")]
    assert texts[-3:] == ["0.200", "0.800", "–"]


def test_curves_go_through_their_points() -> None:
    recall = np.array([0.0, 0.25, 1.0])
    svg = curve_plot({"a": (recall, np.array([1.0, 0.4, 0.2]))}, {"a": ("h3", False)})
    (points,) = paths_of(svg, "stroke: var(--h3)")
    x, y = points.T
    assert (x - x[0]) / (x[-1] - x[0]) == pytest.approx(recall, abs=1e-4)
    assert (y - y[-1]) / (y[0] - y[-1]) == pytest.approx([1, 0.25, 0], abs=1e-4)


def test_curves_over_ranks_are_logarithmic_and_over_radii_linear() -> None:
    precision, style = np.array([1.0, 0.5, 0.2]), {"a": ("h3", False)}
    for over, places, expected in ((RANK, [1, 10, 100], 0.5), (RADIUS, [0, 1, 4], 0.25)):
        svg = curve_plot({"a": (np.array(places), precision)}, style, over)
        (points,) = paths_of(svg, "stroke: var(--h3)")
        x = points[:, 0]
        assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(expected, abs=1e-3)
        assert f'aria-label="{over.title}"' in svg


def test_histograms_are_shares_of_their_own_pairs() -> None:
    """(1, 1, 0): half of the pairs each; (0, 0, 70): all, so twice as high, and two bars further right."""
    svg = histogram_plot("mid", np.array([1, 1, 0, 0]), np.array([0, 0, 70, 0]), "h4")
    (same,), (different,) = paths_of(svg, "stroke: var(--h4)"), paths_of(svg, "stroke: var(--soft); stroke-width: 1.4")
    assert np.ptp(different[:, 1]) == pytest.approx(2 * np.ptp(same[:, 1]), rel=1e-4)
    high = different[different[:, 1] > different[:, 1].min() + 1, 0]
    width = np.ptp(high)
    assert high.min() - different[:, 0].min() == pytest.approx(2 * width, rel=1e-3)
    ticks = [float(text.text) for text in ET.fromstring(svg).iter(f"{SVG}text") if text.text[0].isdigit()]
    assert max(ticks) <= 2.5, "the empty distances beyond the last pair are left out"
    assert 'aria-label="Hamming distances of mid codes"' in svg
