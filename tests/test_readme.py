"""The README keeps its word: its Python and its commands run as they stand, in order, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.forked import program

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docker/README.md")
SKIP = "<!-- not run -->"
NEEDS_MORE_THAN_THIS_MACHINE = ("make ", "docker ", "helm ", "pip install ", "http://")  # or never ends
MOST_LINES = 170


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its language, its text, the line it begins on, and whether it is to be run."""

    language: str
    text: str
    line: int
    run: bool


def blocks(markdown: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL):
        before = markdown[: match.start()]
        skipped = before.rstrip().endswith(SKIP)
        found.append(Block(match[1], match[2], before.count("\n") + 1, not skipped))
    return found


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the built site make them."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """The links of a page to files that are not there, or to headings that they do not have."""
    text = page.read_text(encoding="utf-8")
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


def commands(block: Block) -> list[str]:
    """The commands of a console block; its other lines are output."""
    return [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]


README = blocks((ROOT / "README.md").read_text(encoding="utf-8"))


def lay_out(folder: Path) -> Path:
    """Photos/, labelled/ and query.jpg, as the README and the pages of docs/ take for granted."""
    (folder / "photos").mkdir()
    for number in range(60):  # enough to fit hash heads on
        image = Image.new("RGB", (160, 120), (4 * number, 255 - 4 * number, 40 * (number % 6)))
        draw = ImageDraw.Draw(image)
        draw.ellipse((2 * number, 20, 2 * number + 40, 60 + number), fill="white")
        draw.line((0, 2 * number, 159, 119 - 2 * number), fill="black", width=1 + number % 7)
        image.save(folder / "photos" / f"{number:02}.jpg")
        if number == 5:
            image.crop((5, 5, 155, 115)).save(folder / "query.jpg", quality=60)
        label = folder / "labelled" / ("plain/round", "plain/lined", "odd/mixed")[number % 3]
        label.mkdir(parents=True, exist_ok=True)
        image.save(label / f"{number:02}.jpg")
    return folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("desk"))


@pytest.mark.slow
def test_the_code_runs_in_the_order_of_the_page(desk: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MGM_") or name == "MGM_RUNTIME"}
    environment = kept | {
        "PATH": f"{program().parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(desk / "cache"),
    }
    ran = {"python": 0, "console": 0}
    for block in README:
        if not block.run or block.language not in ran:
            continue
        if block.language == "python":
            calls = [[sys.executable, "-c", block.text]]
        else:
            calls = [["sh", "-c", command] for command in commands(block)]
        for call in calls:
            done = subprocess.run(call, cwd=desk, env=environment, capture_output=True, text=True)
            said = f"README.md:{block.line}: {call[-1]}\n{done.stdout}{done.stderr}"
            assert done.returncode == 0, said
            assert "Traceback" not in done.stderr, said
            ran[block.language] += 1
    assert ran["python"] >= 1
    assert ran["console"] >= 5
    assert (desk / "result.html").stat().st_size > 1000


def test_it_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_python_is_eight_lines() -> None:
    (block,) = (block for block in README if block.language == "python")
    assert len(block.text.splitlines()) == 8


def test_only_blocks_that_need_more_than_this_machine_are_left_out() -> None:
    for block in README:
        if not block.run:
            assert all(any(word in line for word in NEEDS_MORE_THAN_THIS_MACHINE) for line in commands(block)), block


def test_every_block_has_a_known_language() -> None:
    assert {block.language for block in README} <= {"python", "console", "text"}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        named = set(re.findall(r"(?:^\$ |`)make ([a-z]+)", text, re.MULTILINE))
        assert named <= targets, page


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert dead_links(ROOT / page) == []


def test_skipping_and_prompts_are_understood() -> None:
    page = f"{SKIP}\n```console\n$ make x\noutput\n```\n\n```python\nprint()\n```\n"
    assert blocks(page) == [
        Block("console", "$ make x\noutput\n", 2, run=False),
        Block("python", "print()\n", 7, run=True),
    ]
    assert commands(blocks(page)[0]) == ["make x"]
