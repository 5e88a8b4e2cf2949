"""Several query images as one ranking: against a reference on the codes, in any order, and from the command line."""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mg_milvus import QueryTerm
from mg_milvus.errors import NotIndexedError, QueryError
from tests.cli.test_log import run
from tests.integration.test_explanation import BITS, all_codes, mean_rank
from tests.real_codes import distance as distance_to
from tests.real_codes import real_code

if TYPE_CHECKING:
    from pathlib import Path

    from mg_milvus.index import ImageIndex

WEIGHTS = {"coarse": 1.0, "mid": 2.0, "fine": 0.5}


@pytest.fixture
def photos(labelled_index: ImageIndex, labelled_photos: Path) -> list[Path]:
    """One indexed image of each class, and a second of the first."""
    return [*(sorted(folder.iterdir())[0] for folder in sorted(labelled_photos.iterdir())[:3]),
            sorted(sorted(labelled_photos.iterdir())[0].iterdir())[1]]  # fmt: skip


def reference(index: ImageIndex, terms: dict[Path, float], fusion: str) -> list[tuple[str, float]]:
    """Ids and scores of all rows, from the formula, best first: every row is a candidate."""
    ids, bits = all_codes(index)
    scores = dict.fromkeys(ids, 0.0)
    for file, weight in terms.items():
        for name, of_granularity in WEIGHTS.items():
            asked = real_code(index, file, name)
            far = [distance_to(asked, codes) for codes in bits[name]]
            for row, distance in zip(ids, far, strict=True):
                near = 1 / (60 + mean_rank(distance, far)) if fusion == "rank" else 1 - distance / BITS[name]
                scores[row] += weight * of_granularity * near
    return sorted(scores.items(), key=lambda pair: -pair[1])


@pytest.mark.parametrize("fusion", ["rank", "score"])
def test_the_score_is_the_sum_over_images_and_granularities(
    labelled_index: ImageIndex, photos: list[Path], fusion: str
) -> None:
    size = labelled_index.info().rows
    terms = [QueryTerm(photos[0]), QueryTerm(photos[1], weight=2.0), QueryTerm(photos[2], weight=-0.5)]
    options: dict[str, Any] = {"k": size, "depth": size, "weights": WEIGHTS, "fusion": fusion}
    hits = labelled_index.query_together(terms, **options)
    expected = reference(labelled_index, dict(zip(photos[:3], (1.0, 2.0, -0.5), strict=True)), fusion)
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected])
    assert {hit.id: hit.score for hit in hits} == pytest.approx(dict(expected))
    # The distances are those to the nearer of the two images that are looked for.
    ids, bits = all_codes(labelled_index)
    keys = [labelled_index.row(path).id for path in photos[:2]]
    for name in BITS:
        wanted = {key: real_code(labelled_index, file, name) for key, file in zip(keys, photos, strict=False)}
        for hit in hits:
            row = bits[name][ids.index(hit.id)]
            nearer = min(keys, key=lambda key: distance_to(wanted[key], row))
            assert hit.distances[name] == (row != bits[name][ids.index(nearer)]).sum()


def test_one_image_alone_is_the_plain_query(labelled_index: ImageIndex, photos: list[Path]) -> None:
    assert labelled_index.query([photos[0]], k=7) == labelled_index.query(photos[0], k=7)
    assert labelled_index.query_together([QueryTerm(like=photos[0])], k=7) == labelled_index.like(photos[0], k=7)


def test_the_order_of_the_images_does_not_matter(labelled_index: ImageIndex, photos: list[Path]) -> None:
    terms = [
        QueryTerm(photos[0]),
        QueryTerm(photos[1], weight=0.7),
        QueryTerm(photos[2], weight=-0.3),
        QueryTerm(like=photos[3]),
    ]
    answers = [labelled_index.query_together(list(order), k=9) for order in itertools.permutations(terms)]
    assert all(answer == answers[0] for answer in answers)
    assert str(photos[3]) not in {hit.path for hit in answers[0]}


def test_what_is_unlike_is_pushed_down(labelled_index: ImageIndex, photos: list[Path]) -> None:
    """Between two classes, the one that is not wanted comes after the other."""
    size = labelled_index.info().rows
    plain = labelled_index.query([photos[0], photos[1]], k=size, depth=size)
    without = labelled_index.query([photos[0], photos[1]], unlike=[photos[1]], k=size, depth=size)
    kind = photos[1].parent.name

    def mean_place(hits: list[Any]) -> float:
        return float(np.mean([hit.rank for hit in hits if f"/{kind}/" in hit.path]))

    assert mean_place(without) > mean_place(plain)


@pytest.mark.parametrize(
    ("terms", "options", "message"),
    [
        ([], {}, "no image to look for"),
        ([QueryTerm("a.jpg", weight=-1)], {}, "no image to look for: give at least one with a weight above 0"),
        ([QueryTerm("a.jpg", weight=0)], {}, "the weight of an image is 0, expected a number that is not 0"),
        ([QueryTerm("a.jpg", weight=float("nan"))], {}, "the weight of an image is nan"),
        ([QueryTerm("a.jpg", like="b.jpg")], {}, "an image, like=ID_OR_PATH, or codes, and only one"),
        ([QueryTerm()], {}, "an image, like=ID_OR_PATH, or codes"),
        ([QueryTerm("a.jpg")], {"crop": (0, 0, 9, 9)}, "a crop is of one image"),
        ([QueryTerm("a.jpg")], {"fusion": "server"}, "the server cannot fuse several images"),
        ([QueryTerm("a.jpg")], {"verify": True}, "cannot be verified"),
    ],
)
def test_wrong_terms(labelled_index: ImageIndex, terms: list[QueryTerm], options: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        labelled_index.query_together(terms, **options)


def test_an_image_to_be_like_must_be_indexed(labelled_index: ImageIndex) -> None:
    with pytest.raises(NotIndexedError):
        labelled_index.query_together([QueryTerm(like="/nowhere/a.jpg")])


def test_from_the_command_line(labelled_index: ImageIndex, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mg_milvus.cli.settings.open_index", lambda *_, **__: nullcontext(labelled_index))
    done = run("query", photos[0], photos[1], "--together", "--json", "-k", "5")
    assert done.exit_code == 0, done.output
    expected = labelled_index.query([photos[0], photos[1]], k=5)
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == [hit.path for hit in expected]
    done = run(
        "query",
        photos[0],
        "--not",
        photos[2],
        "--image",
        f"0.5:{photos[1]}",
        "--like",
        photos[3],
        "--json",
    )
    terms = [
        QueryTerm(photos[0]),
        QueryTerm(photos[2], weight=-1),
        QueryTerm(photos[1], weight=0.5),
        QueryTerm(like=photos[3]),
    ]
    expected = labelled_index.query_together(terms)
    assert [json.loads(line)["score"] for line in done.stdout.splitlines()] == [hit.score for hit in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "--image", "b.png"], "'b.png' is not WEIGHT:IMAGE"),
        (["a.png", "--image", "2:"], "'2:' is not WEIGHT:IMAGE"),
        (["--like", "a.png", "--like", "b.png"], "add --together"),
        (["a.png", "--not", "b.png", "--explain"], "for the answer to one image"),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str) -> None:
    done = run("query", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
