"""SIGKILL of an ingest at random moments, and the same command again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.checker import check_acknowledged, check_file, check_whole, served
from tests.faults.harness import (
    FITTED,
    FIXED,
    TRIALS,
    Moments,
    Outcomes,
    Run,
    check_nothing_left,
    ingest,
    make_images,
    no_engine_left,
)
from tests.servers import lite_server

HEADS = {"shipped heads": (FIXED, 32), "fitted heads": (FITTED, 60)}
"""Name -> schema and images: with fewer than 50 no heads are fitted."""
Course = tuple[Path, Run]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Course]:
    """Images, and an undisturbed ingest of them, for each kind of heads."""
    courses: dict[str, Course] = {}

    def of(heads: str) -> Course:
        if heads not in courses:
            schema, count = HEADS[heads]
            folder = tmp_path_factory.mktemp("course")
            images = make_images(folder / "images", range(count))
            (folder / "schema.yaml").write_text(schema)
            run = ingest(images, folder / "course.db")
            assert run.finish() == 0, run.output
            courses[heads] = images, run
        return courses[heads]

    return of


def test_sigkill_on_milvus_lite_in_a_file(course: Callable[[str], Course], tmp_path: Path) -> None:
    """Half of the trials look at what the kill left before the next run; in the others that meets it first."""
    outcomes = Outcomes("SIGKILL of mgm ingest, Milvus Lite in a file")
    moments = {heads: Moments.of(course(heads)[1], f"file {heads}") for heads in HEADS}
    for trial in range(TRIALS or 2):
        heads = list(HEADS)[trial % 2]
        images, _ = course(heads)
        (tmp_path / str(trial)).mkdir()
        file = tmp_path / str(trial) / "i.db"
        with outcomes.trial(trial), no_engine_left(file):
            stage, acknowledged = killed(ingest(images, file), moments[heads])
            outcomes.met(f"while at '{stage}' with {heads}")
            if trial // 2 % 2 and file.exists():
                with served(file) as uri:
                    check_acknowledged(uri, acknowledged)
            run = ingest(images, file)
            assert run.finish() == 0, run.output
            check_file(file, images)
            check_nothing_left()
    outcomes.conclude()


def test_sigkill_over_tcp(course: Callable[[str], Course], tmp_path: Path) -> None:
    outcomes = Outcomes("SIGKILL of mgm ingest, over TCP")
    moments = {heads: Moments.of(course(heads)[1], f"tcp {heads}") for heads in HEADS}
    for trial in range(TRIALS or 1):
        heads = list(HEADS)[trial % 2]
        images, _ = course(heads)
        with outcomes.trial(trial), lite_server(tmp_path / f"{trial}.db") as server:
            stage, acknowledged = killed(ingest(images, server.uri), moments[heads])
            outcomes.met(f"while at '{stage}' with {heads}")
            check_acknowledged(server.uri, acknowledged)
            run = ingest(images, server.uri)
            assert run.finish() == 0, run.output
            check_whole(server.uri, images)
            check_nothing_left()
    outcomes.conclude()


def killed(run: Run, moments: Moments) -> tuple[str, int]:
    """Kill it at a random moment; the stage it was at, and how many images it had shown as stored."""
    moments.reach(run)
    run.kill()
    assert run.code in {-signal.SIGKILL, 0}, run.output
    return ("the end" if run.code == 0 else run.events[-1].stage), run.acknowledged
