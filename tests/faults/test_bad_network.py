"""A network that delays, cuts connections and goes silent, between an ingest and its server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.checker import check_acknowledged, check_whole
from tests.faults.harness import FIXED, TRIALS, Moments, Outcomes, Run, ingest, make_images
from tests.faults.proxy import Network, network
from tests.servers import lite_server

DELAY = 0.01
"""Seconds that each piece of data is late, at most."""


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """Images, and an undisturbed ingest of them."""
    folder = tmp_path_factory.mktemp("course")
    images = make_images(folder / "images", range(32))
    (folder / "schema.yaml").write_text(FIXED)
    with lite_server(folder / "course.db") as server, network(server.port, "course") as net:
        net.delay = DELAY
        run = ingest(images, net.uri)
        assert run.finish() == 0, run.output
    return images, run


def cut(net: Network) -> None:
    net.cut()


def cut_for_a_second(net: Network) -> None:
    net.cut(seconds=1.0)


def silent_for_three_seconds(net: Network) -> None:
    net.silence()
    time.sleep(3.0)
    net.speak()


FAULTS = {"cut": cut, "cut for 1 s": cut_for_a_second, "silent for 3 s": silent_for_three_seconds}


def test_a_network_that_recovers_within_the_timeout_is_waited_for(course: tuple[Path, Run], tmp_path: Path) -> None:
    outcomes = Outcomes("network that delays and fails for a moment")
    images, moments = course[0], Moments.of(course[1], "recovers")
    for trial in range(TRIALS or 1):
        name, fault = list(FAULTS.items())[trial % len(FAULTS)]
        file = tmp_path / f"{trial}.db"
        with outcomes.trial(trial), lite_server(file) as server, network(server.port, trial) as net:
            net.delay = DELAY
            run = ingest(images, net.uri)
            moments.reach(run)
            outcomes.met(f"{name} while at '{run.events[-1].stage}'")
            fault(net)
            assert run.finish() == 0, run.output
            assert run.complaints == []
            check_whole(server.uri, images)
    outcomes.conclude()


def test_a_network_that_stays_silent_ends_an_ingest_that_is_run_again(course: tuple[Path, Run], tmp_path: Path) -> None:
    outcomes = Outcomes("network that stays silent")
    images, moments = course[0], Moments.of(course[1], "stays")
    for trial in range(TRIALS or 1):
        file = tmp_path / f"{trial}.db"
        with outcomes.trial(trial), lite_server(file) as server, network(server.port, trial) as net:
            net.delay = DELAY
            run = ingest(images, net.uri, "--timeout", "2")
            moments.reach(run)
            stage = run.events[-1].stage
            net.silence()
            if run.finish() == 0:
                stage = "the end"
            else:
                assert run.code == 1, run.output
                (complaint,) = run.complaints
                assert f"Milvus at {net.uri} does not answer" in complaint
            outcomes.met(f"while at '{stage}'")
            net.cut()
            net.speak()
            check_acknowledged(server.uri, run.acknowledged)
            run = ingest(images, net.uri)
            assert run.finish() == 0, run.output
            check_whole(server.uri, images)
    outcomes.conclude()
