"""SIGKILL of a refit in place at random moments, and the same command again."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from mg_milvus.index import ImageIndex
from tests.faults.checker import check_whole, served
from tests.faults.harness import (
    FITTED,
    TRIALS,
    Moments,
    Outcomes,
    Run,
    check_nothing_left,
    ingest,
    make_images,
    no_engine_left,
)


def refit(file: Path) -> Run:
    return Run("refit", "--uri", file, "--batch-size", "4")


def test_sigkill_of_a_refit(tmp_path: Path) -> None:
    """After the kill all images are found under the name, and after the same command all have the new codes."""
    images = make_images(tmp_path / "images", range(60))
    (tmp_path / "schema.yaml").write_text(FITTED)
    full, whole = tmp_path / "full.db", tmp_path / "course.db"
    run = ingest(images, full)
    assert run.finish() == 0, run.output
    shutil.copy(full, whole)
    course = refit(whole)
    assert course.finish() == 0, course.output
    moments, outcomes = Moments.of(course, "refit"), Outcomes("SIGKILL of mgm refit, Milvus Lite in a file")
    for trial in range(TRIALS or 1):
        (tmp_path / str(trial)).mkdir()
        file = Path(shutil.copy(full, tmp_path / str(trial) / "i.db"))
        with outcomes.trial(trial), no_engine_left(file):
            run = refit(file)
            moments.reach(run)
            stage = run.events[-1].stage
            run.kill()
            outcomes.met(f"while at '{stage}'" if run.code == -signal.SIGKILL else "after its end")
            with ImageIndex.open(file) as index:
                assert index.count() == 60
                path = images / "07.png"
                assert index.like(path, k=1)
                assert index.query(path, k=1)[0].path == str(path)
            run = refit(file)
            assert run.finish() == 0, run.output
            with ImageIndex.open(file) as index:
                assert (index.count(), index.session.store.collections()) == (60, ["images"])
                collection = index.session.store.collection
            assert collection.startswith("images_refit")
            with served(file) as uri:
                check_whole(uri, images, collection=collection)
            check_nothing_left()
    outcomes.conclude()
