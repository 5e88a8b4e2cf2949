"""The languages of the page: its words from ``strings.json``, and which language a browser gets."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import Request
    from markupsafe import Markup

    Words = Mapping[str, str | Mapping[str, str]]
    """Name of a string -> the string, or {"one": ..., "other": ...} where it depends on the number ``count``."""

STRINGS = Path(__file__).with_name("strings.json")
LANGUAGES = {"en": "English", "de": "Deutsch", "zh-Hans": "简体中文"}
"""Language of ``strings.json`` -> its own name; the first one is that of browsers with none of them."""
COOKIE = "mgm_language"
"""Cookie of the language that was chosen on the page."""
_SEPARATORS = {"en": ",", "de": ".", "zh-Hans": ","}
"""Language -> what separates thousands."""


@cache
def words(language: str) -> Words:
    """All strings of a language, by name."""
    return {name: texts[language] for name, texts in json.loads(STRINGS.read_text("utf-8")).items()}


def translate(language: str, name: str, /, **values: object) -> Markup:
    """A string for a template: placeholders are replaced, whole numbers as the language writes them.

    Args:
        language: of ``LANGUAGES``.
        name: of the string; not one that depends on a number.
        values: of the placeholders; texts are escaped, ``Markup`` is not.
    """
    text = words(language)[name]
    if not isinstance(text, str):
        raise TypeError(f"'{name}' depends on a number; the page's scripts show it")
    return escape(text).format(**{key: _written(language, value) for key, value in values.items()})


def _written(language: str, value: object) -> object:
    return f"{value:,}".replace(",", _SEPARATORS[language]) if isinstance(value, int) else value


def language_of(request: Request) -> str:
    """The language that was chosen on the page, else the one of ``LANGUAGES`` that the browser likes best."""
    chosen = request.cookies.get(COOKIE)
    if chosen in LANGUAGES:
        return chosen
    liked = [_liking(part) for part in request.headers.get("accept-language", "")[:1000].split(",")]
    best = max((pair for pair in liked if pair[0] > 0 and pair[1]), key=lambda pair: pair[0], default=(0.0, ""))
    return best[1] or next(iter(LANGUAGES))


def _liking(part: str) -> tuple[float, str]:
    """How much a part of Accept-Language likes a language, from 0 to 1, and which one; empty for any other one."""
    tag, _, weight = part.strip().lower().partition(";q=")
    try:
        liking = float(weight or 1)
    except ValueError:
        liking = 0.0
    primary = tag.partition("-")[0]
    return liking, next((own for own in LANGUAGES if own.partition("-")[0] == primary), "")
