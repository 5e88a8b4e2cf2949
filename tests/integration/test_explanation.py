"""Explanations of results: checked against numpy on the codes; the hits are those of the plain query."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from mg_milvus.errors import NotIndexedError, QueryError
from mg_milvus.index import ImageIndex
from tests.cli.test_log import run
from tests.images import collage

BITS = {"coarse": 64, "mid": 128, "fine": 256}
WEIGHTS = {"coarse": 1.0, "mid": 2.0, "fine": 0.5}


def all_codes(index: ImageIndex) -> tuple[list[str], dict[str, np.ndarray]]:
    """Ids, and granularity -> (n, bits) zeros and ones of all rows."""
    rows = [row for batch in index.session.store.scan(granularities=tuple(BITS)) for row in batch]
    rows.sort(key=lambda row: row.id)
    bits = {
        name: np.unpackbits(np.array([np.frombuffer(row.codes[name], np.uint8) for row in rows]), axis=1)
        for name in BITS
    }
    return [row.id for row in rows], bits


def by_hand(index: ImageIndex, key: str, depth: int) -> tuple[dict[str, list[str]], dict[str, dict[str, int]]]:
    """What each granularity answers, nearest first, ties by id, without the image itself; and all distances."""
    ids, bits = all_codes(index)
    own = ids.index(key)
    answers, distances = {}, {}
    for name, codes in bits.items():
        far = (codes != codes[own]).sum(axis=1)
        order = [ids[i] for i in np.argsort(far, kind="stable")[: depth + 1]]
        answers[name] = [other for other in order if other != key]
        distances[name] = dict(zip(ids, map(int, far), strict=True))
    return answers, distances


def mean_rank(value: int, values: list[int]) -> float:
    return sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2


@pytest.fixture
def asked(labelled_index: ImageIndex, labelled_photos: Path) -> str:
    """The id of an indexed image."""
    return labelled_index.query(labelled_photos / "disc" / "03.jpg", k=1)[0].id


@pytest.mark.parametrize("fusion", ["rank", "score"])
def test_ranks_and_shares_by_hand(labelled_index: ImageIndex, asked: str, fusion: str) -> None:
    options = {"k": 6, "depth": 7, "weights": WEIGHTS, "fusion": fusion, "rrf_k": 10}
    explanation = labelled_index.explain(like=asked, **options)
    answers, distances = by_hand(labelled_index, asked, 7)
    union = {key for named in answers.values() for key in named}
    assert 7 < explanation.candidates == len(union) < 21
    for name, field in explanation.fields.items():
        found = [distances[name][key] for key in answers[name]]
        assert (field.weight, field.bits, field.depth) == (WEIGHTS[name], BITS[name], 8)  # 7, and the image itself
        assert (field.candidates, field.nearest, field.farthest) == (len(found), min(found), max(found))
    for hit, contributions in zip(explanation.hits, explanation.contributions, strict=True):
        for name, contribution in contributions.items():
            own = distances[name][hit.id]
            rank = mean_rank(own, [distances[name][key] for key in union])
            place = answers[name].index(hit.id) + 1 if hit.id in answers[name] else None
            assert (contribution.distance, contribution.rank, contribution.position) == (own, rank, place)
            share = WEIGHTS[name] / (10 + rank) if fusion == "rank" else WEIGHTS[name] * (1 - own / BITS[name])
            assert contribution.score == pytest.approx(share, abs=1e-12)
        assert sum(contribution.score for contribution in contributions.values()) == pytest.approx(hit.score, abs=1e-12)
    assert any(
        contribution.position is None
        for contributions in explanation.contributions
        for contribution in contributions.values()
    )


@pytest.mark.parametrize(
    "options",
    [
        {}, {"k": 3, "depth": 5}, {"granularity": "fine"}, {"weights": {"coarse": 1, "fine": 0}}, {"fusion": "score"},
        {"fusion": "server"}, {"filter": "path like '%disc%'"},
        {"crop": (5, 5, 60, 40)},
    ],
)  # fmt: skip
def test_the_answer_is_the_same(labelled_index: ImageIndex, labelled_photos: Path, options: dict[str, object]) -> None:
    image = labelled_photos / "blocks" / "11.jpg"
    explanation = labelled_index.explain(image, **options)
    assert explanation.hits == labelled_index.query(image, **options)
    assert len(explanation.contributions) == len(explanation.hits) > 0
    assert {"load encoder", "decode", "encode", "fetch"} < set(explanation.seconds)
    assert 0 < sum(explanation.seconds.values()) <= explanation.total_seconds
    if "crop" not in options:
        like = labelled_index.explain(like=image, **options)
        assert like.hits == labelled_index.like(image, **options)
        assert "encode" not in like.seconds


def test_the_server_keeps_its_ranks_to_itself(labelled_index: ImageIndex, asked: str) -> None:
    explanation = labelled_index.explain(like=asked, fusion="server", k=2)
    assert (explanation.candidates, explanation.fields["mid"].candidates) == (None, None)
    assert {
        contribution.score for contributions in explanation.contributions for contribution in contributions.values()
    } == {None}


def test_regions_are_one_more_field(collage_index: ImageIndex) -> None:
    detail = collage(9).crop((120, 0, 240, 80))
    options = {"regions": "contains", "weights": {"coarse": 1, "regions": 3}, "k": 4, "depth": 10}
    explanation = collage_index.explain(detail, **options)
    assert explanation.hits == collage_index.query(detail, **options)
    assert (explanation.fields["regions"].depth, explanation.fields["regions"].candidates) == (10, 10)
    assert explanation.fields["regions"].seconds > 0
    first = explanation.contributions[0]
    alone = collage_index.query(detail, **(options | {"weights": {"regions": 1}, "k": 10}))
    assert first["regions"].position == 1 + [hit.id for hit in alone].index(explanation.hits[0].id)
    assert first["fine"].score is None
    assert first["regions"].score + first["coarse"].score == pytest.approx(explanation.hits[0].score, abs=1e-12)


def test_one_image_is_asked(labelled_index: ImageIndex) -> None:
    for wrong in ({}, {"image": "a.jpg", "like": "b"}):
        with pytest.raises(QueryError, match="and not both"):
            labelled_index.explain(**wrong)
    with pytest.raises(NotIndexedError):
        labelled_index.explain(like="nowhere.jpg")


def test_the_command_tells_people_and_programs(
    labelled_index: ImageIndex, labelled_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mg_milvus.cli.settings.open_index", lambda *_, **__: nullcontext(labelled_index))
    image = str(labelled_photos / "stripes" / "05.jpg")
    done = run("query", image, "--like", image, "--explain")
    assert done.exit_code == 2
    options = ["--explain", "-k", "2", "--filter", "width > 1"]
    done = run("query", image, *options)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["fusion rank: the score is the sum of weight / (60 + rank)", "filter: width > 1"]
    assert lines[3].split() == ["granularity", "weight", "bits", "depth", "candidates", "nearest", "farthest", "time"]
    assert lines[4].split()[:6] == ["coarse", "2.5", "64", "100", "60", "0"]
    assert "60 different images were ranked on every granularity." in lines
    shown = [line.split() for line in lines if "05.jpg" in line or line.startswith("      ")]
    assert shown[0] == ["1", image, "0.1180"]  # 3.6 / 61, and as much again because it stands out on fine
    assert shown[1] == ["same", "image"]
    assert shown[2] == ["coarse", "0", "#1", "#1", "0.0410"]
    assert lines[-1].split()[0] == "total"
    record = json.loads(run("query", "--like", image, *options, "--json").stdout)
    assert (record["query"], record["candidates"], len(record["hits"])) == (image, 59, 2)
    contributions = record["hits"][0]["contributions"]
    assert sum(one["score"] for one in contributions.values()) == pytest.approx(record["hits"][0]["score"])
    assert set(record["fields"]["fine"]) >= {"depth", "candidates", "nearest", "farthest", "seconds", "weight"}
    assert record["total_seconds"] >= record["seconds"]["search fine"] == record["fields"]["fine"]["seconds"]
