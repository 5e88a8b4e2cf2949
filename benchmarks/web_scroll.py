"""How smoothly the page scrolls through an index of many images, what it keeps of them, and how soon it answers.

``python benchmarks/web_scroll.py --rows 100000`` makes such an index of synthetic rows in a scratch folder, whose
files are links to a few drawn images, serves it on a loopback port, and has headless Chromium search, then scroll
``/browse``: slowly, as somebody who looks, and once past everything. Frames depend on what else the machine does, so an
empty page is scrolled first, and the processor time of the page's own thread is counted.

``--drop 20 --megabytes 30`` adds so many files of that size at once instead, and tells for how long page and server did
not react, and how much memory the server took.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from result_file import write_result
from synthetic import BATCH, make, synthetic_rows

from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import CDPSession, Page

DRAWN, A_FOLDER = 40, 1000
DAY = 86_400 * 10**9
PACE = 3000  # pixels a second of somebody who looks
FRAME = 17.0
QUERIES = 12
SCROLL = """async ([from, to, seconds]) => {
    const times = [];
    const start = performance.now();
    for (let now = start; now - start < 1000 * seconds;) {
        scrollTo(0, from + (to - from) * Math.min(1, (now - start) / (1000 * seconds)));
        const next = await new Promise(requestAnimationFrame);
        times.push(next - now);
        now = next;
    }
    return times.slice(1);
}"""
WATCH_TASKS = """() => {
    window.longest = 0;
    const seen = ({ duration }) => (window.longest = Math.max(window.longest, duration));
    new PerformanceObserver((list) => list.getEntries().forEach(seen)).observe({ type: "longtask", buffered: true });
}"""
WATCH_FRAMES = """() => {
    window.longest = 0;
    let last = performance.now();
    const frame = (now) => {
        window.longest = Math.max(window.longest, now - last);
        last = now;
        requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
}"""
HEAP = """() => {
    gc();
    return performance.memory.usedJSHeapSize / 1e6;
}"""
IMAGES_THERE = """() => [...document.querySelectorAll(".card img")]
    .filter((one) => one.getBoundingClientRect().top < innerHeight).every((one) => one.complete && one.naturalWidth)"""
HEIGHT = "document.documentElement.scrollHeight - innerHeight"


def fill(folder: Path, uri: str, rows: int) -> None:
    """An index of synthetic rows: a thousand to a folder, three of a day, all files there."""
    drawn = []
    random = np.random.default_rng(0)
    (folder / "drawn").mkdir()
    for number in range(DRAWN):
        coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
        drawn.append(folder / "drawn" / f"{number}.jpg")
        Image.fromarray(coarse).resize((480, 360 if number % 3 else 640), Image.Resampling.BICUBIC).save(drawn[-1])
    with ImageIndex.open(uri) as index:
        schema = index.schema
        store = index.session.store
        make(store, schema)
        for first in range(0, rows, BATCH):
            batch = []
            for number, row in enumerate(synthetic_rows(first, min(BATCH, rows - first), schema), first):
                file = folder / "photos" / f"{number // A_FOLDER:03}" / f"{number:07}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                os.link(drawn[number % DRAWN], file)
                status = file.stat()
                width, height = 480, 360 if number % DRAWN % 3 else 640
                batch.append(replace(
                    row, id=image_id(str(file)), path=str(file), size=status.st_size, mtime_ns=status.st_mtime_ns,
                    taken=status.st_mtime_ns - number * DAY // 3, width=width, height=height,
                ))  # fmt: skip
            store.upsert(batch)


@contextmanager
def serving(uri: str, *options: str) -> Iterator[tuple[str, int]]:
    """The address of a page over the index, and the server's process."""
    command = [sys.executable, "-m", "mg_milvus", "serve", "--uri", uri, "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().split()[0], server.pid
    finally:
        server.terminate()
        server.wait()


@contextmanager
def opened() -> Iterator[Page]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as running:
        flags = ["--no-sandbox", "--enable-precise-memory-info", "--js-flags=--expose-gc"]
        browser = running.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def busy_seconds(session: CDPSession) -> float:
    """Processor time that the page's own thread has taken for its tasks."""
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return metrics["TaskDuration"]


def scrolled(page: Page, session: CDPSession, way: tuple[float, float], seconds: float) -> dict[str, float]:
    before = busy_seconds(session)
    page.evaluate("window.longest = 0")
    frames = page.evaluate(SCROLL, [*way, seconds])
    return {
        "frames a second": round(1000 / statistics.mean(frames), 1),
        "share of frames within 17 ms": round(sum(one <= FRAME for one in frames) / len(frames), 3),
        "longest frame ms": round(max(frames)),
        "longest task ms": round(page.evaluate("window.longest")),
        "ms of the thread a frame": round(1000 * (busy_seconds(session) - before) / len(frames), 2),
    }


def scroll(page: Page, address: str, seconds: float) -> dict[str, Any]:
    """Frames, memory and cards of ``/browse``."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.wait_for_load_state("networkidle")
    page.set_content("<div style='height: 5000000px; background: linear-gradient(red, blue) 0 0 / 100% 300px'></div>")
    page.evaluate(WATCH_TASKS)
    empty = scrolled(page, session, (0, PACE * seconds), seconds)
    started = time.perf_counter()
    page.goto(f"{address}browse", wait_until="commit")
    page.wait_for_selector(".card:not(.skeleton)")
    first = time.perf_counter() - started
    page.wait_for_load_state("networkidle")
    started = time.perf_counter()
    page.reload(wait_until="commit")
    page.wait_for_selector(".card:not(.skeleton)")
    again = time.perf_counter() - started
    page.evaluate(WATCH_TASKS)
    before, height = page.evaluate(HEAP), page.evaluate(HEIGHT)
    looked = scrolled(page, session, (0, PACE * seconds), seconds)
    passed = scrolled(page, session, (0, height), 4 * seconds)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")  # blocks are a little higher than was thought
    page.wait_for_selector("#grid .hits:last-of-type .card:not(.skeleton)")
    height = page.evaluate(HEIGHT)
    back = scrolled(page, session, (height, height - PACE * seconds), seconds)
    return {
        "seconds until the first images": {"at first": round(first, 2), "again": round(again, 2)},
        "an empty page": empty, "looking": looked, "past everything": passed, "looking at the end": back,
        "cards in the page": page.locator(".card").count(),
        "elements": page.evaluate("document.querySelectorAll('*').length"),
        "heap MB": {"at the start": round(before, 1), "after all rows": round(page.evaluate(HEAP), 1)},
    }  # fmt: skip


def answers(page: Page, address: str) -> dict[str, float]:
    """Milliseconds from the request of a query with an indexed image, whose codes are there, to the cards."""
    page.goto(address)
    page.wait_for_selector(".card img")
    ids = page.eval_on_selector_all(".card", "all => all.map((card) => card.dataset.id)")
    asked, shown = [], []
    for own in ids[:QUERIES]:
        started = time.perf_counter()
        with urllib.request.urlopen(f"{address}api/query?id={own}&candidates=true&k=1") as response:
            response.read()
        asked.append(1000 * (time.perf_counter() - started))
    for place in range(QUERIES):
        card = page.locator("#grid .card").nth(3 + place)
        own = card.get_attribute("data-id")
        page.wait_for_function(IMAGES_THERE)  # who searches has seen what is there
        started = time.perf_counter()
        card.locator(".seek").evaluate("link => link.click()")
        page.wait_for_url(f"**/?id={own}")  # the address follows the answer, and the cards are made with it
        page.evaluate("new Promise(requestAnimationFrame)")
        shown.append(1000 * (time.perf_counter() - started))
    return {
        "ms of the answer (median)": round(statistics.median(asked)),
        "ms until it is shown (median)": round(statistics.median(shown)), "the first": round(shown[0]),
    }  # fmt: skip


def noise(folder: Path, count: int, megabytes: float) -> list[Path]:
    """Large photographs, all different: noise does not get smaller."""
    side = int((megabytes * 1e6 / 0.97) ** 0.5)  # bytes of a pixel at this quality
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=92, subsampling=2)
    files = []
    for number in range(count):
        files.append(folder / f"large-{number:02}.jpg")
        files[-1].write_bytes(data.getvalue() + bytes([number]))
    return files


def drop(page: Page, address: str, pid: int, files: list[Path]) -> dict[str, Any]:
    """Add files at once: the longest time for which page and server did not react, and the server's memory."""
    gaps, ended = [0.0], threading.Event()

    def poll() -> None:
        while not ended.wait(0.05):
            started = time.perf_counter()
            with urllib.request.urlopen(f"{address}health", timeout=120) as response:
                response.read()
            gaps.append(time.perf_counter() - started)

    page.goto(address)
    page.wait_for_selector("#add")
    page.evaluate(WATCH_FRAMES)
    poller = threading.Thread(target=poll)
    poller.start()
    started = time.perf_counter()
    page.set_input_files("#choose", files)
    page.click("#several >> text=Add them to the index")
    page.wait_for_function("!document.querySelector('.going button:not([hidden])')", polling=500)
    page.wait_for_selector("#adding [role=status]:has-text('added')")
    seconds = time.perf_counter() - started
    ended.set()
    poller.join()
    peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "files": len(files), "MB a file": round(files[0].stat().st_size / 1e6, 1), "seconds": round(seconds, 1),
        "said": page.inner_text("#adding [role=status]"),
        "the page's longest gap ms": round(page.evaluate("window.longest")),
        "the server's longest answer ms": round(1000 * max(gaps)),
        "server's peak memory MB": round(int(peak.split()[1]) / 1000),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10, help="of looking; four times as many past everything")
    parser.add_argument("--drop", type=int, default=0, metavar="FILES", help="add so many files at once instead")
    parser.add_argument("--megabytes", type=float, default=30, help="of each of them")
    parser.add_argument("--json", type=Path, help="keep the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, opened() as page:
        folder, uri = Path(scratch), str(Path(scratch) / "mgm.db")
        if arguments.drop:
            with serving(uri, "--upload-to", str(folder / "uploads")) as (address, pid):
                figures = {"drop": drop(page, address, pid, noise(folder, arguments.drop, arguments.megabytes))}
        else:
            fill(folder, uri, arguments.rows)
            with serving(uri, "--read-only") as (address, _):
                figures = {"rows": arguments.rows, "answers": answers(page, address)}
                figures |= scroll(page, address, arguments.seconds)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        kept = json.loads(arguments.json.read_text())["figures"] if arguments.json.exists() else {}
        write_result(arguments.json, kept | figures)


if __name__ == "__main__":
    main()
