"""The pages of docs/ keep their word: what they show runs, what they quote is said, and the site builds offline."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import mg_milvus
from mg_milvus.cli.app import app
from mg_milvus.cli.log import FLAG
from tests.test_layers import ROWS
from tests.test_readme import Block, blocks, commands, dead_links, lay_out
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
NEEDS_MORE_THAN_THIS_MACHINE = ("make ", "docker ", "pip install ", "http://", "--on ray")  # or never ends


def page_blocks(page: Path) -> list[Block]:
    return blocks(page.read_text(encoding="utf-8"))


RUN = [page for page in PAGES if any(block.run and block.language != "text" for block in page_blocks(page))]


GROUP = get_command(app)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the commands run in."""
    monkeypatch.chdir(lay_out(tmp_path))
    return tmp_path


def mgm(command: str) -> list[str]:
    program, *arguments = shlex.split(command, comments=True)
    assert program == "mgm", command
    return arguments


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_what_a_page_shows_runs_in_its_order(page: Path, desk: Path) -> None:
    if page.stem == "your-own-encoder" and not os.environ.get("MGM_TEST_DOCS"):
        pytest.skip("trains for more than a minute: MGM_TEST_DOCS=1 runs this page too")
    for block in page_blocks(page):
        if not block.run or block.language == "text":
            continue
        if block.language == "python":
            exec(compile(block.text, f"{page}:{block.line}", "exec"), {"__name__": "__main__"})
            continue
        for command in commands(block):
            done = CliRunner().invoke(app, mgm(command))
            assert done.exit_code == 0, f"{page.name}:{block.line}: {command}\n{done.output}{done.exception!r}"


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_commands_have_the_options_that_a_page_gives_them(page: Path, desk: Path) -> None:
    (desk / "codes").mkdir()
    (desk / "backup").mkdir()
    for made in ("mine.safetensors", "trained.safetensors", "schema.yaml", "server.yaml"):  # by other commands
        (desk / made).touch()
    for block in page_blocks(page):
        for command in commands(block) if block.run and block.language == "console" else ():
            group, rest = GROUP, [word for word in mgm(command) if word != FLAG]
            while hasattr(group, "commands"):
                group = group.commands[rest.pop(0)]
            group.make_context("mgm", rest)  # refuses what the command does not have


def test_only_blocks_that_need_more_than_this_machine_are_left_out() -> None:
    for page in PAGES:
        for block in page_blocks(page):
            assert block.language in {"console", "python", "text"}, page
            if not block.run:
                assert all(any(word in line for word in NEEDS_MORE_THAN_THIS_MACHINE) for line in commands(block)), (
                    block
                )


def test_the_plan_for_a_billion_images_is_what_mgm_plans() -> None:
    page = page_blocks(DOCS / "scaling.md")
    place = next(place for place, block in enumerate(page) if "mgm plan --images 1e9" in block.text)
    (command,) = commands(page[place])
    planned = CliRunner().invoke(app, mgm(command)).stdout.splitlines()
    shown = page[place + 1].text.splitlines()
    assert len(shown) > 5
    assert [line for line in shown if line not in planned] == []


def test_links_and_images_lead_somewhere() -> None:
    for page in PAGES:
        assert not re.search(r"\]\([^)\s]+://", page.read_text(encoding="utf-8")), page
        assert dead_links(page) == [], page


def test_every_page_is_in_the_contents_and_every_image_on_a_page() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name not in contents] == []
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    images = sorted((DOCS / "images").glob("*"))
    assert [image.name for image in images if f"images/{image.name}" not in text] == []
    assert sum(image.stat().st_size for image in images) < 1_500_000


def test_the_command_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import runpy; print(runpy.run_path('docs/cli.py')['reference'](), end='')"],
        cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
    )  # fmt: skip
    assert done.stdout == (DOCS / "cli.md").read_text(encoding="utf-8"), "make reference writes docs/cli.md again"


def test_the_house_is_drawn_as_it_is() -> None:
    """The first diagram names every room in its row, from the highest row to the lowest."""
    drawn = page_blocks(DOCS / "architecture.md")[0].text.splitlines()
    rooms = [re.split(r" {3,}", line.strip())[0].split("  ") for line in drawn]
    flat = [room for row in rooms for room in row]
    assert flat == [room for row in reversed(ROWS) for room in row]


def sentences() -> Iterator[str]:
    """Every text in the source, with a NUL for each value that is put into it."""
    for file in Path(mg_milvus.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                yield "".join(parts).replace("\n", " ")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value.replace("\n", " ")


def quoted() -> list[str]:
    """The messages on the page: its third-level headings in code, where … stands for what differs."""
    return re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


def is_said(message: str, said: list[str]) -> bool:
    """Whether one text of the source holds what the message has between its …, in this order."""
    parts = message.split("…")
    pattern = re.compile(".*?".join(map(re.escape, parts)))
    return any(all(part in text for part in parts) and pattern.search(text) for text in said)


def test_every_quoted_message_is_said_by_the_source() -> None:
    said, messages = list(sentences()), quoted()
    assert len(messages) == len(set(messages)) >= 20
    assert [message for message in messages if not is_said(message, said)] == []
    assert not is_said(messages[0] + "!", said)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, as `make docs` makes it."""
    pytest.importorskip("zensical", reason="needs zensical: pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="needs mkdocstrings: pip install -e '.[docs]'")
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "mkdocs.yml", checkout)
    shutil.copytree(DOCS, checkout / "docs")
    shutil.copytree(ROOT / "mg_milvus", checkout / "mg_milvus", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=checkout, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "build" / "docs"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium, or CHROMIUM=PATH")
def test_the_site_can_be_searched_as_files(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    requests: list[str] = []
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: requests.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.click(".md-search__button")
        page.get_by_placeholder("Search").fill("diffusion map")
        page.locator("a[href*='searching.html#the-hash-heads']").first.wait_for()
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_site_asks_nobody(site: Path) -> None:
    for page in PAGES:
        name = "index.html" if page.stem == "README" else f"{page.stem}.html"
        html = (site / name).read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"?(https?:)?//[^>]*", html)
        assert fetched == [], name
    for file in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", file.read_text(encoding="utf-8")), file
    api = (site / "api.html").read_text(encoding="utf-8")
    assert all(
        f'id="mg_milvus.{name}' in api for name in ("ImageIndex", "ImageIndex.query", "Hit", "errors.MgMilvusError")
    )


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    painter = ROOT / "benchmarks" / "painted_scenes.py"
    subprocess.run([sys.executable, painter, "photos", "--each", "5"], check=True)
    Path("photos.queries/balloons.jpg").rename("query.jpg")
    notebook = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text(encoding="utf-8"))
    shown: list[object] = []
    names: dict[str, object] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    answers = [value for value in shown if isinstance(value, list) and len(value) == 5]
    assert len(answers) == 5
    assert all(isinstance(hit, mg_milvus.Hit) for hits in answers for hit in hits)
    scores = [hit.score for hit in answers[2]]
    assert scores == sorted(scores, reverse=True)
    assert all(hit.ranks["fine"] <= 5 for hit in answers[2])
    assert answers[3][0].box is not None
