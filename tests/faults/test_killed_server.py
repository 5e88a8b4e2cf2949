"""SIGKILL of the server at random moments of an ingest, which waits for it, or fails and is run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.checker import check_acknowledged, check_whole
from tests.faults.harness import FIXED, TRIALS, Moments, Outcomes, Run, ingest, make_images
from tests.servers import lite_server


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """Images, and an undisturbed ingest of them."""
    folder = tmp_path_factory.mktemp("course")
    images = make_images(folder / "images", range(32))
    (folder / "schema.yaml").write_text(FIXED)
    with lite_server(folder / "course.db") as server:
        run = ingest(images, server.uri)
        assert run.finish() == 0, run.output
    return images, run


def test_a_server_that_is_killed_and_comes_back_is_waited_for(course: tuple[Path, Run], tmp_path: Path) -> None:
    """It is away for a quarter of a second; what is promised is ``--timeout``, 10 s."""
    outcomes = Outcomes("SIGKILL of the server, which comes back while the ingest runs")
    images, moments = course[0], Moments.of(course[1], "recovers")
    for trial in range(TRIALS or 1):
        with outcomes.trial(trial), lite_server(tmp_path / f"{trial}.db") as server:
            run = ingest(images, server.uri)
            moments.reach(run)
            outcomes.met(f"while at '{run.events[-1].stage}'")
            server.kill()
            server.start()
            assert run.finish() == 0, run.output
            assert run.complaints == []
            check_whole(server.uri, images)
    outcomes.conclude()


def test_a_server_that_stays_away_ends_an_ingest_that_is_run_again(course: tuple[Path, Run], tmp_path: Path) -> None:
    outcomes = Outcomes("SIGKILL of the server, which comes back after the ingest has failed")
    images, moments = course[0], Moments.of(course[1], "stays")
    for trial in range(TRIALS or 1):
        with outcomes.trial(trial), lite_server(tmp_path / f"{trial}.db") as server:
            run = ingest(images, server.uri, "--timeout", "2")
            moments.reach(run)
            stage = run.events[-1].stage
            server.kill()
            if run.finish() == 0:  # the server had done all it was needed for
                stage = "the end"
                assert run.complaints == []
            else:
                assert run.code == 1, run.output
                (complaint,) = run.complaints
                assert f"Milvus at {server.uri} does not answer" in complaint
                assert "check the URI and that it is running" in complaint
            outcomes.met(f"while at '{stage}'")
            server.start()
            check_acknowledged(server.uri, run.acknowledged)
            run = ingest(images, server.uri)
            assert run.finish() == 0, run.output
            check_whole(server.uri, images)
    outcomes.conclude()
