"""Files that are changed, cut short, replaced and deleted while they are read, and clocks that go back."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from tests.faults.checker import check_whole, contents
from tests.faults.harness import FIXED, SEED, TRIALS, Outcomes, ingest, make_images
from tests.images import encoded, image, save_image
from tests.servers import lite_server

YEAR = 365 * 24 * 3600
COUNT = 32


def test_a_clock_that_goes_back(tmp_path: Path) -> None:
    """A file is read again when its time is another, be it later or earlier."""
    images = make_images(tmp_path / "images", range(8))
    (tmp_path / "schema.yaml").write_text(FIXED)
    now = int(time.time())
    for number, moment in enumerate((now + YEAR, now, now - YEAR, 0, now + 9 * YEAR, 1, now - 1, now)):
        os.utime(images / f"{number:02}.png", (moment, moment))
    with lite_server(tmp_path / "clock.db") as server:
        run = ingest(images, server.uri)
        assert run.finish() == 0, run.output
        check_whole(server.uri, images)
        # All earlier than they were: half of them other images, half the same.
        for number in range(8):
            file = images / f"{number:02}.png"
            if number % 2:
                save_image(file, 100 + number)
            os.utime(file, (-YEAR - number, -YEAR - number))
        run = ingest(images, server.uri)
        assert run.finish() == 0, run.output
        assert "8 seen: 0 added, 4 updated, 4 unchanged, 0 removed, 0 failed" in run.output
        check_whole(server.uri, images)


def test_files_that_change_while_they_are_read(tmp_path: Path) -> None:
    """What cannot be read is told and ends nothing; once all is quiet, the next ingest sets everything right."""
    outcomes = Outcomes("files changed, cut short, replaced and deleted while an ingest reads them")
    (tmp_path / "schema.yaml").write_text(FIXED)
    chance = random.Random(SEED)
    for trial in range(max(1, TRIALS // 5)):
        images = make_images(tmp_path / "images", range(COUNT))
        with outcomes.trial(trial), lite_server(tmp_path / f"{trial}.db") as server:
            run = ingest(images, server.uri)
            while run.code is None and not run.acknowledged:
                time.sleep(0.01)  # all have been found then
            left = list(range(COUNT))
            while run.code is None and left:
                disturb(images / f"{left.pop():02}.png", chance)  # the last that is to be read first
                time.sleep(0.01)
            assert run.finish() in {0, 3}, run.output
            told = run.output.count(".png: ")
            assert (run.code == 3) == bool(told), run.output
            paths = contents(server.uri).paths
            assert max(paths.values()) == 1
            assert len(paths) + told >= COUNT
            outcomes.met(f"with {COUNT - len(left)} files disturbed, {told} of them unreadable")
            for file in images.iterdir():
                if not file.read_bytes().endswith(b"IEND\xaeB`\x82"):  # cut short
                    save_image(file, chance.randrange(1000))
            run = ingest(images, server.uri, "--prune")
            assert run.finish() == 0, run.output
            check_whole(server.uri, images)
    outcomes.conclude()


def disturb(file: Path, chance: random.Random) -> None:
    """Write another image into it or in its place, cut it short, or delete it."""
    other = encoded(image(chance.randrange(1000)), "PNG")
    match chance.randrange(4):
        case 0:
            file.write_bytes(other)
        case 1:
            beside = file.with_name("beside")
            beside.write_bytes(other)
            beside.replace(file)
        case 2:
            os.truncate(file, chance.randrange(file.stat().st_size))
        case _:
            file.unlink()
