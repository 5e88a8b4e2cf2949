"""SECURITY.md promises what tests hold: each promise names them, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADING = re.compile(r"^\*\*(.+?)\*\* \((.+?)\)$", re.MULTILINE)


def test_every_promise_names_tests_that_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    promised = text[text.index("## What is promised") : text.index("## What is not promised")]
    headings = HEADING.findall(promised)
    assert len(headings) == len(re.findall(r"^\*\*", promised, re.MULTILINE)) >= 10
    for promise, names in headings:
        tests = re.findall(r"`(.+?)`", names)
        assert tests, promise
        for name in tests:
            path = ROOT / name if "/" in name else ROOT / "tests" / "hostile" / f"{name}.py"
            assert path.exists(), f"{promise}: {name}"


def test_every_attack_stands_for_a_promise() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    attacks = {file.stem for file in (ROOT / "tests" / "hostile").glob("test_*.py")}
    assert {name for name in attacks if f"`{name}`" not in text} == set()
