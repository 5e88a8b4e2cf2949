"""Options of queries, and schemas, of any kind of value: an answer, or an error of the project's."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import typer
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mg_milvus import errors
from mg_milvus.cli.options import code_lengths, numbers
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.search.query import Query, QueryOptions
from tests.images import image, save_image

if TYPE_CHECKING:
    from collections.abc import Iterator

HUGE = 10**400
number = st.integers() | st.floats() | st.sampled_from([HUGE, -HUGE, 2**63, 1e308, 5e-324, -0.0, math.nan, math.inf])
word = st.text(max_size=5) | st.sampled_from(["coarse", "mid", "fine", "regions", "object", "rank", "\udcff"])
scalar = st.none() | st.booleans() | number | word | st.binary(max_size=5)
anything = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(scalar, inner, max_size=4),
    max_leaves=6,
)
sensible = st.fixed_dictionaries(
    {},
    optional={
        "k": st.integers(1, 5),
        "weights": st.dictionaries(st.sampled_from(["coarse", "mid", "fine"]), number, max_size=3),
        "profile": st.sampled_from(["category", "object", "instance", "balanced"]),
        "fusion": st.sampled_from(["rank", "score"]),
    },
)
options = st.builds(
    dict.__or__, sensible,
    st.dictionaries(st.sampled_from([*QueryOptions.__annotations__, "colour", "", "\udcff"]), anything, max_size=2),
)  # fmt: skip


CODES = {"coarse": bytes(8), "mid": bytes(16), "fine": bytes(32)}
IMAGE = image(1)
PLAIN = Schema.load("regions").model_dump(mode="json")
WITH_PARTS = Schema.load("regions")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageIndex]:
    folder = tmp_path_factory.mktemp("queries")
    with ImageIndex.open("memory:") as index:
        index.ingest(*(save_image(folder / f"{seed}.png", seed) for seed in range(3)))
        yield index


def one_line(error: errors.MgMilvusError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 600


@given(options)
@settings(deadline=None, max_examples=400)
@example({"weights": {"coarse": 1e308, "fine": 1e308}, "fusion": "score"})
@example({"weights": {"coarse": 5e-324, "fine": 1e308}})
@example({"weights": {"mid": 9e-153}})
@example({"weights": {"mid": 9e299}})
@example({"weights": {"coarse": HUGE}})
@example({"weights": ["coarse"]})
@example({"weights": {1: 1}})
@example({"granularity": ["coarse"]})
@example({"profile": {"a": 1}})
@example({"crop": (math.nan, 0, 1, 1)})
@example({"filter": 1})
def test_any_options_are_answered_or_refused(index: ImageIndex, asked: Any) -> None:
    try:
        hits = index.query_codes(CODES, **asked)
    except errors.MgMilvusError as error:
        one_line(error)
    else:
        assert len(hits) == min(3, asked.get("k", 3))
        assert all(math.isfinite(hit.score) for hit in hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    try:
        Query.of(WITH_PARTS, asked)
    except errors.MgMilvusError as error:
        one_line(error)


@given(st.tuples(number, number, number, number) | anything)
@settings(deadline=None, max_examples=60)
@example((0, 0, 10, HUGE))
@example((0.5, 0, 10, 10))
@example((0, 0, 10, 10))
@example((True, 0, 10, 10))
@example([0, 0, 10, 10])
@example("abcd")
def test_any_crop_is_answered_or_refused(index: ImageIndex, box: Any) -> None:
    try:
        assert len(index.query(IMAGE, crop=box)) == 3
    except errors.MgMilvusError as error:
        one_line(error)


@given(st.text(max_size=20) | st.from_regex(r"[a-z]{1,3}=-?[0-9]{1,4}(e[0-9]{1,4})?(,[a-z]=nan)?", fullmatch=True))
@settings(deadline=None)
def test_any_text_after_weights_and_bits_is_numbers_or_wrong_usage(text: str) -> None:
    for read in (lambda: numbers(text, "--weights", "coarse=1"), lambda: code_lengths(text)):
        try:
            found = read()
        except typer.BadParameter:
            continue
        assert all(0 <= value < math.inf for value in found.values())


@st.composite
def spoiled_schemas(draw: st.DrawFn) -> dict[str, Any]:
    """The plain data of a schema, with something else in one to three places."""
    data = copy.deepcopy(PLAIN)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from([*keys, "colour"] if isinstance(place, dict) else keys))
            inner = place.get(key) if isinstance(place, dict) else place[key]
            if not (isinstance(inner, dict | list) and inner) or draw(st.booleans()):
                break
            place = inner
        place[key] = draw(anything)
    return data


@given(spoiled_schemas())
@settings(deadline=None, max_examples=200)
def test_any_data_is_a_schema_or_a_schema_error(data: dict[str, Any]) -> None:
    try:
        schema = Schema(**data)
    except errors.SchemaError as error:
        assert all(line.startswith("Schema") and len(line) < 400 for line in str(error).splitlines())  # noqa: PT017
    else:
        assert Schema.from_yaml(schema.to_yaml()) == schema
        assert Query.of(schema, {}).weights
    try:
        text = yaml.safe_dump(data)
    except (yaml.YAMLError, ValueError):  # too many digits
        return
    try:
        Schema.from_yaml(text)
    except errors.SchemaError as error:
        assert all(line.startswith("<text>") and len(line) < 400 for line in str(error).splitlines())  # noqa: PT017
