"""SIGKILL of an ingest at random moments, and the same command again."""

from __future__ import annotations

import signal
from pathlib import Path

from checker import check_acknowledged, check_file, check_whole, served
from harness import (
    FITTED,
    FIXED,
    TRIALS,
    Moments,
    Outcomes,
    Run,
    check_nothing_left,
    ingest,
    make_pictures,
    no_engine_left,
)
from servers import lite_server


def test_sigkill_on_milvus_lite_in_a_file(tmp_path: Path) -> None:
    """Half of the trials look at what the kill left before the next run; in the others that meets it first."""
    outcomes = Outcomes("SIGKILL of mgm ingest, Milvus Lite in a file")
    pictures = make_pictures(tmp_path / "pictures", range(60))
    moments: dict[str, Moments] = {}
    for trial in range(TRIALS or 2):
        home = tmp_path / str(trial)
        home.mkdir()
        schema, name = ((FIXED, "shipped heads"), (FITTED, "fitted heads"))[trial % 2]
        (tmp_path / "schema.yaml").write_text(schema)
        if name not in moments:
            run = ingest(pictures, home / "course.db")
            assert run.finish() == 0, run.output
            moments[name] = Moments.of(run, f"file {name}")
            (home / "course.db").unlink()
            (home / ".course.db.lock").unlink()
        file = home / "i.db"
        with outcomes.trial(trial), no_engine_left(file):
            stage, acknowledged = killed(ingest(pictures, file), moments[name])
            outcomes.met(f"while at '{stage}' with {name}")
            if trial // 2 % 2 and file.exists():
                with served(file) as uri:
                    check_acknowledged(uri, acknowledged)
            run = ingest(pictures, file)
            assert run.finish() == 0, run.output
            check_file(file, pictures)
            check_nothing_left()
    outcomes.conclude()


def test_sigkill_over_tcp(tmp_path: Path) -> None:
    outcomes = Outcomes("SIGKILL of mgm ingest, over TCP")
    pictures = make_pictures(tmp_path / "pictures", range(60))
    moments: dict[str, Moments] = {}
    for trial in range(TRIALS or 1):
        schema, name = ((FITTED, "fitted heads"), (FIXED, "shipped heads"))[trial % 2]
        (tmp_path / "schema.yaml").write_text(schema)
        if name not in moments:
            with lite_server(tmp_path / f"course{trial}.db") as server:
                run = ingest(pictures, server.uri)
                assert run.finish() == 0, run.output
                moments[name] = Moments.of(run, f"tcp {name}")
        with outcomes.trial(trial), lite_server(tmp_path / f"{trial}.db") as server:
            stage, acknowledged = killed(ingest(pictures, server.uri), moments[name])
            outcomes.met(f"while at '{stage}' with {name}")
            check_acknowledged(server.uri, acknowledged)
            run = ingest(pictures, server.uri)
            assert run.finish() == 0, run.output
            check_whole(server.uri, pictures)
            check_nothing_left()
    outcomes.conclude()


def killed(run: Run, moments: Moments) -> tuple[str, int]:
    """Kill it at a random moment; the stage it was at, and how many pictures it had shown as stored."""
    moments.reach(run)
    run.kill()
    assert run.code == -signal.SIGKILL or run.code == 0, run.output
    return ("the end" if run.code == 0 else run.events[-1].stage), run.acknowledged
