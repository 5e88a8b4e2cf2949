"""Make the images of these pages from the running program: ``make screenshots``.

    python docs/screenshots.py [OUT] [--only NAME]      default: docs/images

Paints scenes (benchmarks/painted_scenes.py), ingests them with regions, starts ``mgm serve``, and photographs it in
headless Chromium (``CHROMIUM=PATH`` where it has another name). Needs the extra ``dev``. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageEnhance, ImageOps
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import painted_scenes  # noqa: E402 - a script beside, not a package
from demo_images import crop, turn  # noqa: E402

from mg_milvus.index import ImageIndex  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

EACH = 14
PATIENCE = 240_000  # milliseconds: the first query loads the encoder
COLOURS = 256
DESKTOP = {"viewport": {"width": 1280, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
BALLOONS = (0.27, 0.02, 0.2, 0.45)
"""The two in mountains/03.jpg, as fractions of its sides."""


STYLE = """
body { margin: 0; padding: 24px; font: 15px system-ui, "DejaVu Sans", sans-serif; background: #f6f6f4; color: #1b1c1e }
section, header { display: grid; grid-template-columns: 170px repeat(5, 1fr); gap: 14px; align-items: center }
section { margin-top: 14px }
h2 { font-size: 18px; margin: 0 }
small { display: block; font-weight: 400; font-size: 13px; color: #62656b }
figure { margin: 0 }
div { position: relative; line-height: 0 }
img { width: 100%; border-radius: 8px }
figcaption { font-size: 12.5px; color: #62656b; padding-top: 4px }
i { position: absolute; box-sizing: border-box;
    border: 2.5px solid white; border-radius: 6px; box-shadow: 0 0 3px #000 }
"""


def edited(image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Edited copies: cropped, mirrored, rotated and darker."""
    yield "cropped", crop(image, 0.8, 0.3, 0.4)
    yield "mirrored", ImageOps.mirror(image)
    yield "darker", ImageEnhance.Brightness(turn(image, 4)).enhance(0.8)


def paint(folder: Path) -> None:
    """scenes/KIND/NN.jpg, scenes.queries/KIND.jpg, and edited copies of three images among them."""
    subprocess.run([sys.executable, painted_scenes.__file__, folder / "scenes", "--each", str(EACH)], check=True)
    for kind, number in (("balloons", 4), ("sails", 3), ("fruit", 2)):
        with Image.open(folder / "scenes" / kind / f"{number:02}.jpg") as original:
            for name, copy in edited(original.convert("RGB")):
                copy.save(folder / "scenes" / kind / f"{number:02}-{name}.jpg", quality=80)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of ``mgm serve`` over the scenes."""
    mgm = [sys.executable, "-m", "mg_milvus"]
    uri = ["--uri", str(folder / "scenes.db")]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run([*mgm, "ingest", "scenes", "--schema", "regions", *uri], cwd=folder, env=environment, check=True)
    server = subprocess.Popen(
        [*mgm, "serve", "--port", "0", *uri], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[0]
    finally:
        server.terminate()
        server.wait()


def search(page: Page, image: Path) -> None:
    page.set_input_files("#choose", image)
    settle(page)


def settle(page: Page) -> None:
    """Wait until the result, its images and its animations are complete."""
    page.wait_for_selector("#grid:not([aria-busy]) .card .verdict", state="attached")
    page.wait_for_function(
        """() => [...document.querySelectorAll('.card img')]
            .filter((one) => one.getBoundingClientRect().top < innerHeight).every((one) => one.naturalWidth)"""
    )
    page.wait_for_function("() => document.getAnimations().every((one) => one.playState !== 'running')")


def drag(page: Page, frame: str, box: tuple[float, float, float, float]) -> None:
    place = page.locator(frame).bounding_box()
    assert place is not None
    x, y = place["x"] + place["width"] * box[0], place["y"] + place["height"] * box[1]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + place["width"] * box[2], y + place["height"] * box[3], steps=5)
    page.mouse.up()
    page.wait_for_selector("#whole:visible")
    page.wait_for_selector(".card .region")
    settle(page)


def the_page(page: Page, folder: Path) -> None:
    search(page, folder / "scenes.queries" / "balloons.jpg")


def weights(page: Page, folder: Path) -> None:
    search(page, folder / "scenes.queries" / "sea.jpg")
    page.click("text=instance")
    page.focus("#weight-mid")
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    settle(page)


def detail(page: Page, folder: Path) -> None:
    search(page, folder / "scenes" / "mountains" / "03.jpg")
    drag(page, "#frame", BALLOONS)


def why(page: Page, folder: Path) -> None:
    detail(page, folder)
    page.click("#scores")
    page.click(".card:nth-child(2) .why")
    page.wait_for_function("() => [...document.querySelectorAll('#why img')].every((one) => one.naturalWidth)")


def duplicates(page: Page, _: Path) -> None:
    page.goto(f"{page.url.rstrip('/')}/duplicates?distance=20")
    page.wait_for_selector(".group img")
    page.wait_for_load_state("networkidle")


def large(page: Page, folder: Path) -> None:
    the_page(page, folder)
    page.click(".card:nth-child(3) .tile")
    page.keyboard.press("i")
    page.locator("#lightbox img").evaluate("(image) => image.decode()")
    page.wait_for_load_state("networkidle")


def overview(page: Page, _: Path) -> None:
    page.goto(f"{page.url.rstrip('/')}/overview")
    page.wait_for_selector(".cluster img")
    page.wait_for_load_state("networkidle")


SHOTS: dict[str, tuple[Callable[[Page, Path], None], dict[str, object]]] = {
    "page": (the_page, DESKTOP),
    "weights": (weights, DESKTOP),
    "detail": (detail, DESKTOP),
    "why": (why, DESKTOP),
    "duplicates": (duplicates, DESKTOP),
    "large": (large, DESKTOP),
    "overview": (overview, DESKTOP),
    "german": (the_page, DESKTOP | {"locale": "de-DE"}),
    "dark": (the_page, DESKTOP | {"color_scheme": "dark"}),
    "phone": (detail, PHONE),
}


def save(shot: bytes, file: Path) -> None:
    """As a PNG of few colours; flat areas stay flat."""
    with Image.open(io.BytesIO(shot)) as image:
        few = image.convert("RGB").quantize(COLOURS, kmeans=12)
        few.save(file, optimize=True)
    print(f"{file}  {file.stat().st_size / 1000:.0f} kB")


def granularities(browser: Browser, folder: Path, out: Path) -> None:
    """What each granularity finds for one query: rows of a small HTML page of its own."""
    query = folder / "query.jpg"
    with Image.open(folder / "scenes" / "desert" / "02.jpg") as original:
        dark = ImageEnhance.Brightness(turn(original.convert("RGB"), 5)).enhance(0.75)
        crop(dark, 0.6, 0.9, 0.15).save(query, quality=60)
    with Image.open(query) as image:
        width, height = image.size
    detail = (round(0.03 * width), round(0.03 * height), round(0.33 * width), round(0.5 * height))
    rows = []
    with ImageIndex.open(folder / "scenes.db") as index:
        for name, meaning in (
            ("coarse", "the same kind of scene"),
            ("mid", "the same class"),
            ("fine", "this very image, edited"),
            ("regions", "what is in the box, and where"),
        ):
            hits = index.query(query, k=5, granularity=name, crop=detail if name == "regions" else None)
            cells = "".join(
                f"<figure><div>{image_tag(hit.path)}{box_tag(hit.box, painted_scenes.SIZE)}</div>"
                f"<figcaption>{hit.distances[name]} bits</figcaption></figure>"
                for hit in hits
            )
            rows.append(f"<section><h2>{name}<small>{meaning}</small></h2>{cells}</section>")
    page = browser.new_page(viewport={"width": 1100, "height": 400})
    boxed = image_tag(str(query)) + box_tag(detail, (width, height))
    header = f"<h2>query<small>a darker, rotated crop</small></h2><figure><div>{boxed}</div></figure>"
    html = f"<meta charset=utf-8><style>{STYLE}</style><header>{header}</header>{''.join(rows)}"
    (folder / "granularities.html").write_text(html)
    page.goto((folder / "granularities.html").as_uri())
    page.wait_for_load_state("networkidle")
    save(page.screenshot(full_page=True), out / "granularities.png")
    page.close()


def image_tag(path: str) -> str:
    return f'<img src="{Path(path).as_uri()}">'


def box_tag(box: tuple[int, int, int, int] | None, size: tuple[int, int]) -> str:
    if box is None:
        return ""
    shares = [100 * part / whole for part, whole in zip(box, size * 2, strict=True)]
    return '<i style="left:{:.1f}%;top:{:.1f}%;width:{:.1f}%;height:{:.1f}%"></i>'.format(*shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "docs" / "images")
    parser.add_argument("--only", choices=[*SHOTS, "granularities"])
    options = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("there is no Chromium: apt-get install chromium, or say where it is with CHROMIUM=PATH")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="images-") as name, sync_playwright() as running:
        folder = Path(name)
        paint(folder)
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--hide-scrollbars"])
        with served(folder) as home:
            for shot, (do, device) in SHOTS.items():
                if options.only not in {None, shot}:
                    continue
                context = browser.new_context(**device)
                context.set_default_timeout(PATIENCE)
                page = context.new_page()
                page.goto(home)
                page.wait_for_selector(".card img")
                search(page, folder / "scenes.queries" / "city.jpg")  # the first query loads the encoder
                page.goto(home)
                page.wait_for_selector(".card img")
                do(page, folder)
                save(page.screenshot(), options.out / f"{shot}.png")
                context.close()
        if options.only in {None, "granularities"}:
            granularities(browser, folder, options.out)
        browser.close()


if __name__ == "__main__":
    main()
