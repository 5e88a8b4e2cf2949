"""How smoothly the page scrolls through a long answer, and whether its memory grows.

``python benchmarks/web_scroll.py --uri mgm.db --cards 10000`` serves the index on a loopback port, shows so many cards
of its images in headless Chromium, scrolls down and up again at an even speed, several times, and counts the frames.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys

from playwright.sync_api import sync_playwright

SHOW = """async (cards) => {
    const { Grid } = await import("/static/grid.js");
    const rows = await (await fetch("/api/sample?count=1000")).json();
    const box = document.querySelector("#grid");
    box.replaceChildren();
    const ask = () => {};
    const grid = new Grid(box, { link: () => "/", ask, why: ask });
    grid.show(Array.from({ length: cards }, (_, i) => (
        { row: { ...rows[i % rows.length], distances: { fine: i % 8 } }, rank: i + 1, score: 1 / (i + 1),
          ranks: { fine: i + 1 } }
    )), { fine: 8 });
    return document.body.scrollHeight;
}"""
SCROLL = """async ([from, to, seconds]) => {
    const times = [];
    const start = performance.now();
    for (let now = start; now - start < 1000 * seconds;) {
        scrollTo(0, from + (to - from) * (now - start) / (1000 * seconds));
        const next = await new Promise(requestAnimationFrame);
        times.push(next - now);
        now = next;
    }
    return times.slice(1);
}"""
MEMORY = "() => [performance.memory.usedJSHeapSize / 1e6, document.querySelectorAll('*').length]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uri", default="mgm.db")
    parser.add_argument("--cards", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10, help="of each way")
    parser.add_argument("--passes", type=int, default=3)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "mg_milvus", "serve", "--uri", arguments.uri, "--port", "0", "--read-only"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        address = server.stdout.readline().split()[0]
        with sync_playwright() as running:
            flags = ["--no-sandbox", "--enable-precise-memory-info"]
            page = running.chromium.launch(executable_path=chromium, args=flags).new_page()
            page.goto(address)
            height = page.evaluate(SHOW, arguments.cards)
            for number in range(arguments.passes):
                frames = [
                    time
                    for way in ((0, height), (height, 0))
                    for time in page.evaluate(SCROLL, [*way, arguments.seconds])
                ]
                heap, nodes = page.evaluate(MEMORY)
                print(json.dumps({
                    "pass": number + 1, "frames/s": round(1000 / statistics.mean(frames), 1),
                    "median ms": round(statistics.median(frames), 1),
                    "99 % within ms": round(statistics.quantiles(frames, n=100)[98], 1),
                    "heap MB": round(heap, 1), "elements": nodes,
                }), flush=True)  # fmt: skip
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
