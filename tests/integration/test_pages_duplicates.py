"""The page of near-duplicates: hostile names stay text, and it stays small enough to open."""

from __future__ import annotations

import pytest

from mg_milvus.duplicates import report as page_module
from mg_milvus.duplicates.report import DuplicateGroup, DuplicateReport, GroupMember, duplicates_page
from mg_milvus.files import escape_controls
from tests.integration.test_pages import Page, an_image

BITS = {"coarse": 64, "fine": 256}


def a_member(path: str, duplicate_of: str | None = None, fine: int = 0) -> GroupMember:
    return GroupMember(
        f"{abs(hash(path)):032x}"[:32], path, 1500, 10**18, 40, 30, duplicate_of, {"coarse": 0, "fine": fine}
    )


def a_report(*groups: tuple[GroupMember, ...], diameter: int = 8) -> DuplicateReport:
    made = tuple(DuplicateGroup(members, diameter) for members in groups)
    return DuplicateReport(
        50, 1225, 12, {"coarse": 9}, 0.99, 3, 0.02, "best", made, 1.0, unseen_pairs=1225, near_pairs=3
    )


def page_of(report: DuplicateReport) -> Page:
    return Page(duplicates_page(report, collection="images", bits=BITS))


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>.png", '"><img src=x onerror=alert(1)>.png', "{{ 7 * 7 }}.png", "two\nlines.png"]
)
def test_hostile_names_stay_text(tmp_path, name):
    path = f"{tmp_path}/{name}"
    page = page_of(a_report((a_member(path), a_member(name, path, 3)), diameter=20))
    assert not page.open
    assert not page.all("script")
    assert not page.all("img")
    assert not [attrs for _, attrs in page.elements if any(key.startswith("on") for key in attrs)]
    assert all(attrs["href"].startswith("file:///") for attrs in page.all("a"))
    assert [attrs["title"] for attrs in page.all("h3")] == [escape_controls(path), escape_controls(name)]


def test_it_says_what_near_means_and_how_sure_it_is(tmp_path):
    path = an_image(tmp_path / "a.png", (40, 30))
    page = page_of(a_report((a_member(path), a_member(path, path, 64))))
    text = " ".join(page.text.split())
    assert "1 group of 2 images among 50; 1 removable (1.5 kB)" in text
    assert "near: at most 12 of 256 bits differ on fine, 9 of 64 on coarse" in text
    assert "3 near pairs of 1,225 compared by codes only; expected by chance: 0.02 (rate 1.6e-05)" in text
    assert "40 × 30 1.5 kB 2001-09-09 01:46" in text
    assert [attrs["style"] for attrs in page.all("i") if "style" in attrs] == ["width:100.0%", "width:75.0%"]
    assert len(page.all("img")) == 2
    assert "connected through" not in text


def test_a_chained_group_is_marked_and_says_what_each_image_duplicates():
    kept = a_member("/a.jpg"), a_member("/b.jpg")
    page = page_of(a_report((*kept, a_member("/c.jpg", "/b.jpg", 9)), diameter=13))
    text = " ".join(page.text.split())
    assert "connected through intermediate images" in text
    assert "duplicate of b.jpg" in text


def test_many_groups_and_large_groups_are_cut_off_and_counted(monkeypatch):
    monkeypatch.setattr(page_module, "MOST_GROUPS", 3)
    monkeypatch.setattr(page_module, "MOST_MEMBERS", 4)
    large = (a_member("/0.jpg"), *(a_member(f"/{n}.jpg", "/0.jpg", 1) for n in range(1, 10)))
    page = page_of(a_report(*[large] * 5))
    text = " ".join(page.text.split())
    assert len(page.all("section", "group")) == 3
    assert len(page.all("li", "card")) == 12
    assert text.count("and 6 more of this group") == 3
    assert "and 2 more groups" in text


def test_nothing_found():
    assert "No near-duplicates." in page_of(a_report()).text
