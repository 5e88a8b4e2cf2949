"""A disk that becomes full in the middle of an ingest into a Milvus Lite file."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mg_milvus.errors import StoreError
from mg_milvus.store.lite_server import down, up
from mg_milvus.store.lite_server import server_of as served_file
from tests.faults.checker import check_acknowledged, check_file, served
from tests.faults.harness import (
    FIXED,
    TRIALS,
    Moments,
    Outcomes,
    check_nothing_left,
    ingest,
    make_images,
    no_engine_left,
)
from tests.waiting import wait_until


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of the test's own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux, to mount a small disk: sudo make suite")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_an_ingest_that_a_full_disk_ends_goes_on_when_there_is_room(disk: Path, tmp_path: Path) -> None:
    outcomes = Outcomes("disk full")
    (tmp_path / "schema.yaml").write_text(FIXED)
    images = make_images(tmp_path / "images", range(32))
    file, filler = disk / "i.db", disk / "filler"
    run = ingest(images, file)
    assert run.finish() == 0, run.output
    moments = Moments.of(run, "disk")
    for trial in range(TRIALS or 1):
        file.unlink()
        with outcomes.trial(trial), no_engine_left(file):
            run = ingest(images, file)
            moments.reach(run)
            fill(filler, 5_000 * (trial % 3))
            stage = run.events[-1].stage
            if run.finish() == 0:
                stage = "the end"
            else:
                assert run.code == 1, run.output
                (complaint,) = run.complaints
                assert complaint.startswith(f"mgm: the disk of {file} is full: ")
                assert "Make room, then run the same command again; what was stored stays" in complaint
            outcomes.met(f"while at '{stage}'")
            filler.unlink()
            if file.exists():
                with served(file) as uri:
                    check_acknowledged(uri, run.acknowledged)
            run = ingest(images, file)
            assert run.finish() == 0, run.output
            check_file(file, images)
            check_nothing_left()
    outcomes.conclude()


def test_a_shared_file_is_not_served_on_a_full_disk(disk: Path) -> None:
    file, filler = disk / "i.db", disk / "filler"
    running, _ = up(file, 0)
    try:
        fill(filler, 500_000)
        wait_until(lambda: served_file(file) is None, "the file is no longer served")
        filler.unlink()
        assert f"the disk of {file} is full" in Path(running.log).read_text()
        fill(filler, 500_000)
        with pytest.raises(StoreError, match=r"is full: [\d,]+ bytes are free, 32,000,000 are needed"):
            up(file, 0)
        filler.unlink()
        assert up(file, 0)[1], "there is room again, so it starts"
    finally:
        down(file)


def fill(filler: Path, leave: int) -> None:
    """Take all of a disk but some bytes, while others write on it too."""
    with filler.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(1_000_000)):
                pass
        file.truncate(file.tell() - leave)
