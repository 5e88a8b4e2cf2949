"""Results in a notebook: fragments that hold all they need, escape what they show, and never raise."""

from __future__ import annotations

import base64
import copy
import io
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

import mg_milvus
from mg_milvus.html.pages import SIDE
from mg_milvus.index import ImageIndex
from mg_milvus.records import FAILURES_SHOWN, Failure, Hit
from mg_milvus.results import MAX_SHOWN, Hits, IngestReport

ODD = "<b>&\"'.jpg"


class Fragment(HTMLParser):
    """What a fragment shows, read as a browser would."""

    VOID = frozenset({"img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.images: list[tuple[int, int]] = []
        self.alternatives: list[str] = []
        self.text: list[str] = []
        self.titles: list[str] = []
        self.widths: list[float] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            if name == "title":
                self.titles.append(value)
            if name == "alt":
                self.alternatives.append(value)
            if name == "style":
                self.widths.append(float(re.fullmatch(r"width:([\d.]+)%", value)[1]))
            if name in {"src", "href"}:
                kind, data = value.split(",", 1)
                assert kind == "data:image/jpeg;base64"
                with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
                    self.images.append(image.size)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.text.append(data.strip())


def read(shown: object) -> Fragment:
    html = shown._repr_html_()
    html.encode()
    found = Fragment(html)
    assert not {"script", "iframe", "link", "html", "body"} & set(found.tags)
    assert not re.search(r"url\(|@import", html)
    return found


def test_hits_are_a_list(labelled_index: ImageIndex, labelled_photos: Path) -> None:
    hits = labelled_index.query(labelled_photos / "disc" / "03.jpg", k=5)
    plain = list(hits)
    assert isinstance(hits, list)
    assert hits == plain
    assert plain == hits
    assert hits != plain[:4]
    assert (hits[0], hits[-1], len(hits), type(hits[0])) == (plain[0], plain[-1], 5, Hit)
    for some in (hits[1:3], copy.copy(hits)[1:3], pickle.loads(pickle.dumps(hits))[1:3]):
        assert (type(some), some, some.bits) == (Hits, plain[1:3], {"coarse": 64, "mid": 128, "fine": 256})


def test_hits_show_themselves(labelled_index: ImageIndex, labelled_photos: Path) -> None:
    found = read(labelled_index.query(labelled_photos / "disc" / "03.jpg", k=5))
    assert found.text[0] == "5 results"
    assert len(found.images) == 5
    assert max(side for size in found.images for side in size) <= SIDE
    assert found.titles[0] == str(labelled_photos / "disc" / "03.jpg")
    assert found.widths[:3] == [100, 100, 100]  # the image itself: all bits agree
    assert read(labelled_index.query(labelled_photos / "disc" / "03.jpg", k=1)).text[0] == "1 result"


def a_hit(rank: int, path: str) -> Hit:
    return Hit(rank, f"{rank:032x}", path, 0.5, {"coarse": 16}, {"coarse": 1.0})


def test_what_is_gone_is_a_placeholder_and_names_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    paths = [str(tmp_path / ODD), str(tmp_path / "broken.jpg"), "", "/", "http://host/a.jpg", "/a\udc80b.jpg"]
    found = read(Hits([a_hit(rank, path) for rank, path in enumerate(paths, 1)], {"coarse": 64}))
    assert found.images == []
    assert f"{ODD} cannot be read" in found.text
    assert found.widths == [75.0] * len(paths)
    assert read(Hits()).text == ["0 results"]


def test_the_size_is_bounded(tmp_path: Path) -> None:
    Image.effect_noise((1500, 900), 90).convert("RGB").save(tmp_path / "noise.jpg")
    hits = Hits([a_hit(rank, str(tmp_path / "noise.jpg")) for rank in range(1, MAX_SHOWN + 31)])
    html = hits._repr_html_()
    found = Fragment(html)
    assert (len(found.images), set(found.images)) == (MAX_SHOWN, {(SIDE, 120)})
    assert found.text[-1] == "and 30 more"
    assert len(html) < 1_500_000


def test_the_look_is_that_of_the_pages_and_stays_inside() -> None:
    html = Hits()._repr_html_()
    style = html.split("<style>")[1].split("</style>")[0]
    pages = (Path(mg_milvus.__file__).parent / "html" / "templates" / "result.css").read_text()
    light, dark = pages.split("@media (prefers-color-scheme: dark)")[:2]
    for part, number in ((light, 1), (dark, 2)):
        accent = re.search(r"--h0: (#\w+);", part)[1]
        assert style.count(f"--h0: {accent};") >= number
    assert re.search(r'\[data-jp-theme-light="false"\] \.mgm \{ color-scheme: dark;[^}]*--page: #131416', style)
    selectors = re.sub(r"@media \([^)]*\) \{|/\*.*?\*/", "", style)
    for rule in re.findall(r"([^{}]+)\{", selectors):
        assert all(".mgm" in one for one in rule.split(",")), rule


def test_an_ingest_shows_itself() -> None:
    failures = tuple(Failure(f"/a/{ODD}{number}", "<i>broken</i>") for number in range(FAILURES_SHOWN + 3))
    found = read(IngestReport(1234, 1000, 200, 10, 4, failures, 10.0, adapted_on=900, interrupted=True))
    assert found.text[:2] == [
        "1,234 images seen",
        "120.0 images/s · 10.0 s · interrupted · hash heads fitted on 900 of them",
    ]
    assert found.text[2:13] == [
        "added", "updated", "unchanged", "removed", "failed", "images", "1,000", "200", "10", "4", "23",
    ]  # fmt: skip
    assert found.text.count("<i>broken</i>") == FAILURES_SHOWN
    assert found.text[-1] == "and 3 more"


def test_duplicates_show_themselves(copied_index: ImageIndex) -> None:
    report = copied_index.duplicates(distance=0)
    found = read(report)
    assert (len(report.groups), len(found.images)) == (2, 4)
    assert [text for text in found.text if text in {"keep", "removable"}] == ["keep", "removable"] * 2
    assert found.text[0].startswith("2 groups of 4 images among 44")
    assert found.text.count("coarse 0, mid 0, fine 0") == 2
    alone = read(report.groups[0])
    assert (len(alone.images), alone.text[0]) == (2, "Near-duplicates")


def test_an_evaluation_shows_itself(labelled_photos: Path) -> None:
    evaluation = mg_milvus.evaluate(labelled_photos, curves=True)
    found = read(evaluation)
    figures = evaluation.to_json()
    assert "queries: 60" in found.text
    row = found.text.index("coarse")
    assert found.text[row + 1] == f"{figures['granularities']['coarse']['map']:.3f}"
    assert found.text.count("query") == 4
    assert len(found.images) == 4 * 8
