"""The languages of the page: the same strings in each, none left in scripts and templates, the right one chosen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi import Request

import mg_milvus
from mg_milvus.duplicates.report import KEEP, MARKS
from mg_milvus.duplicates.verify import Verdict
from mg_milvus.records import VERDICTS
from mg_milvus.search.verdicts import LOOSELY_SIMILAR, NOTHING, remark
from mg_milvus.web.languages import COOKIE, LANGUAGES, STRINGS, language_of, translate

if TYPE_CHECKING:
    pass

PACKAGE = Path(mg_milvus.__file__).parent
WEB = PACKAGE / "web"
SCRIPTS = sorted((WEB / "static").glob("*.js"))
TEMPLATES = sorted((WEB / "templates").glob("*.jinja"))
TEXTS: dict[str, dict[str, str | dict[str, str]]] = json.loads(STRINGS.read_text("utf-8"))
PLURALS = {"en": {"one", "other"}, "de": {"one", "other"}, "zh-Hans": {"other"}}
"""Forms of numbers, as Unicode's CLDR has them."""

NOT_WORDS = {
    *("Accept", "AbortError", "Files", "Arrow", "ArrowDown", "ArrowLeft", "ArrowRight", "ArrowUp", "End", "Enter"),
    *("Esc", "Escape", "Home", "small primary", "not all", "looking for images", *VERDICTS),
}
"""Names of keys and errors, of classes and media, and what the server says."""
CODE = re.compile(r'\bclass: "[^"]*"|\$\("[^"]*"|(?:querySelector(?:All)?|matchMedia|closest)\("[^"]*"')
"""What never holds words for people: class names, selectors, conditions of media."""


def forms(text: str | dict[str, str]) -> dict[str, str]:
    return {"other": text} if isinstance(text, str) else text


def placeholders(text: str | dict[str, str]) -> set[str]:
    return {name for form in forms(text).values() for name in re.findall(r"\{(\w+)\}", form)}


@pytest.mark.parametrize("name", TEXTS)
def test_every_string_is_there_in_each_language(name: str) -> None:
    texts = TEXTS[name]
    assert list(texts) == list(LANGUAGES)
    assert all(form.strip() == form and form for text in texts.values() for form in forms(text).values())
    assert len({frozenset(placeholders(text)) for text in texts.values()}) == 1
    for language, text in texts.items():
        assert isinstance(text, str) or (set(text) == PLURALS[language] and "{count}" in text["other"])


def test_every_string_is_used_and_every_used_one_is_there() -> None:
    source = "\n".join(file.read_text("utf-8") for file in [*SCRIPTS, *TEMPLATES, WEB / "app.py"])
    used = set(re.findall(r"""\b(?:t|nodes)\(\s*"([\w.]*\w)\"""", source))
    used |= set(re.findall(r"""["`]([a-z_]+(?:\.\w+)+)["`]""", source)) & TEXTS.keys()
    families = set(re.findall(r"""[`"]([a-z_.]+\.)(?:\$\{|" ~)""", source))
    plain = set(re.findall(r"""["`]([a-z_]+)["`]""", source))
    assert used <= TEXTS.keys()
    lost = {name for name in TEXTS if name not in used | plain and not name.startswith((*families, "said."))}
    assert lost == set()


def test_what_the_server_says_in_fixed_words_is_translated() -> None:
    said = {name.removeprefix("said.") for name in TEXTS if name.startswith("said.")}
    marks = {*MARKS.values(), "keep", "removable"}
    remarks = {part for verdict in (NOTHING, LOOSELY_SIMILAR) for part in remark([verdict]).split("; ")}
    stage = re.compile(r"""(?:Progress\(|tally\.progress\(|stage(?:: str)? ?=|stage or )\s*"([^"]+)\"""")
    files = [file for room in ("ingest", "duplicates", "web") for file in (PACKAGE / room).glob("*.py")]
    stages = {found for file in files for found in stage.findall(file.read_text("utf-8"))} - {"moving rows"}
    assert {"looking for images", "encoding", "comparing"} <= stages
    assert {*VERDICTS, *Verdict, *marks, *remarks, *stages} <= said
    assert {f"near.keep.{rule}" for rule in KEEP} <= TEXTS.keys()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_scripts_hold_no_words_for_people(script: Path) -> None:
    source = "\n".join(
        line for line in script.read_text("utf-8").splitlines() if not re.match(r"\s*(//|/?\*)|.*\btext\(", line)
    )
    texts = [text for text in re.findall(r'"((?:[^"\\\n]|\\.)*)"', CODE.sub("", source)) if text not in NOT_WORDS]
    assert [text for text in texts if re.match(r"[A-ZÄÖÜ][a-zäöü]", text)] == []
    assert [text for text in texts if re.search(r"[a-z]{2} [a-z]{2}", text)] == []
    # Between the placeholders of a template stand class names, styles and filters; no words with a space before them.
    mixed = [re.sub(r"\$\{[^}]*\}", "{}", text) for text in re.findall(r"`([^`\n]*)`", CODE.sub("", source))]
    assert [
        text for text in mixed if re.search(r"(?:^| )(?!like|and|or|not|in|path)[A-Za-z]{3,} [a-z]{2,}", text)
    ] == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: file.name)
def test_templates_hold_no_words_for_people(template: Path) -> None:
    source = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", "", template.read_text("utf-8"), flags=re.S)
    attributes = re.findall(r'\b(?:title|alt|placeholder|aria-label)="([^"]*[A-Za-z][^"]*)"', source)
    text = re.sub(r"<[^>]*>|&nbsp;|mg-milvus", "", source)
    assert attributes == []
    assert re.findall(r"[A-Za-z]+", text) == []


def request(accepted: str, cookie: str = "") -> Request:
    headers = [(b"accept-language", accepted.encode()), (b"cookie", cookie.encode())]
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("", "en"), ("de", "de"), ("de-AT,de;q=0.9,en;q=0.8", "de"), ("fr-FR,fr;q=0.9,zh-CN;q=0.8,en;q=0.7", "zh-Hans"),
        ("en;q=0.2, de;q=0.7", "de"), ("zh-TW", "zh-Hans"), ("fr", "en"), ("*", "en"), ("de;q=0, fr", "en"),
        ("de;q=x, en", "en"), ("den, zhx", "en"),
    ],
)  # fmt: skip
def test_the_language_that_the_browser_likes_best(accepted: str, expected: str) -> None:
    assert language_of(request(accepted)) == expected


def test_the_language_that_was_chosen_on_the_page_holds() -> None:
    assert language_of(request("en", f"other=1; {COOKIE}=de")) == "de"
    assert language_of(request("de", f"{COOKIE}=<script>")) == "de"


def test_templates_get_escaped_values_and_numbers_of_the_language() -> None:
    assert translate("de", "number", number=1234567) == "1.234.567"
    assert translate("en", "number", number=1234567) == "1,234,567"
    assert translate("de", "images_of", text="<b>") == "Bilder von &lt;b&gt;"
