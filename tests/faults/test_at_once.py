"""Several at once over TCP: ingests of overlapping folders, and queries meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pymilvus import MilvusClient

from mg_milvus.errors import CollectionNotFoundError
from mg_milvus.index import ImageIndex
from tests.faults.checker import check_whole, contents
from tests.faults.harness import FITTED, FIXED, TRIALS, Outcomes, Run, ingest, make_images
from tests.servers import lite_server
from tests.waiting import PATIENCE

OFTEN = max(1, TRIALS // 5)


def test_two_first_ingests_of_overlapping_folders(tmp_path: Path) -> None:
    """Each would fit heads to its own images; both end with one encoder, and no other is kept."""
    outcomes = Outcomes("two first ingests of overlapping folders at once")
    (tmp_path / "schema.yaml").write_text(FITTED)
    everything = tmp_path / "images"
    make_images(everything / "one", range(15))
    make_images(everything / "shared", range(15, 55))
    make_images(everything / "two", range(55, 75))
    for trial in range(OFTEN):
        with outcomes.trial(trial), lite_server(tmp_path / f"{trial}.db") as server:
            runs = [
                Run(
                    "ingest", everything / own, everything / "shared", "--uri", server.uri, "--batch-size", "4",
                    "--schema", tmp_path / "schema.yaml",
                )
                for own in ("one", "two")
            ]  # fmt: skip
            for run in runs:
                assert run.finish() == 0, run.output
                assert run.complaints == []
            outcomes.met("with one encoder")
            check_whole(server.uri, everything)
            assert kept_encoders(server.uri) == [contents(server.uri).encoder.fingerprint]
    outcomes.conclude()


def test_queries_during_a_first_ingest(tmp_path: Path) -> None:
    """Each answers with images that are whole, or says that there is no index yet; none disturbs the ingest."""
    outcomes = Outcomes("queries during an ingest")
    images = make_images(tmp_path / "images", range(32))
    files = set(map(str, images.iterdir()))
    (tmp_path / "schema.yaml").write_text(FIXED)
    for trial in range(OFTEN):
        with outcomes.trial(trial), lite_server(tmp_path / f"{trial}.db") as server:
            run = ingest(images, server.uri)
            answered: list[int] = []
            with ImageIndex.open(server.uri) as index:
                while (run.code is None or not answered) and run.seconds < PATIENCE:
                    try:
                        hits = index.query(images / "00.png", k=32)
                    except CollectionNotFoundError:
                        assert not answered, "it was there"
                        continue
                    details = index.query(images / "00.png", k=32, regions="contains") if hits else []
                    answered.append(len(hits))
                    for found in (hits, details):
                        assert {hit.path for hit in found} <= files
                        assert len({hit.id for hit in found}) == len(found)
                    if hits:  # the first image is the first that is stored
                        assert hits[0].path == str(images / "00.png")
                        assert set(hits[0].distances.values()) == {0}
                        assert details
            assert run.finish() == 0, run.output
            assert run.complaints == []
            assert np.all(np.diff(answered) >= 0), answered
            outcomes.met(f"with {len(answered)} answers")
            check_whole(server.uri, images)
    outcomes.conclude()


def kept_encoders(uri: str) -> list[str]:
    client = MilvusClient(uri, dedicated=True)
    try:
        rows = client.query("images_encoder", filter='id like "%:0"', output_fields=["id"])
        return [row["id"].removesuffix(":0") for row in rows if row["id"] != "statistics:0"]
    finally:
        client.close()
