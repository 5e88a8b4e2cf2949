"""The names of a collection and its refits, worked out by hand."""

from __future__ import annotations

import pytest

from mg_milvus.schema.models import COMPANION_ENDINGS
from mg_milvus.store.succession import base_name, companion_of, holder, names_for_people, refit_name


@pytest.mark.parametrize(
    ("collection", "base", "following"),
    [
        ("photos", "photos", "photos_refit2"),
        ("photos_refit2", "photos", "photos_refit3"),
        ("photos_refit19", "photos", "photos_refit20"),
        ("my_refit", "my_refit", "my_refit_refit2"),
        ("photos_refit2_encoder", "photos_refit2_encoder", "photos_refit2_encoder_refit2"),
    ],
)
def test_names(collection: str, base: str, following: str) -> None:
    assert (base_name(collection), refit_name(collection)) == (base, following)


def test_a_name_without_a_collection_is_that_of_the_first_whole_refit() -> None:
    there = {"photos_refit10", "photos_refit10_whole", "photos_refit9", "photos_refit9_whole", "photos_refit8", "cats"}
    assert holder("photos", there) == "photos_refit9"
    assert holder("cats", there) is None
    assert holder("photos_refit8", there) is None
    assert names_for_people(["photos_refit8", "photos_refit9", "cats"], there) == {"photos", "cats"}
    assert names_for_people(["photos_refit8"], {"photos_refit8"}) == set()


def test_companions_are_those_of_the_base_only_where_they_were_renamed() -> None:
    own = {"photos_refit2", "photos_refit2_encoder", "photos_refit2_regions"}
    whole = own | {"photos_refit2_whole"}
    former = {"photos", "photos_encoder", "photos_tuned"}

    def found(there: set[str], collection: str = "photos_refit2") -> set[str]:
        return {companion_of(collection, ending, there) for ending in COMPANION_ENDINGS}

    assert found(former, "photos") == {"photos"}
    for there in (set(), former, own, own | former, whole | former, whole | {"photos_encoder", "photos_tuned"}):
        assert found(there) == {"photos_refit2"}, there
    half = whole - {"photos_refit2_encoder"} | {"photos_encoder"}
    assert companion_of("photos_refit2", "_encoder", half) == "photos"
    assert companion_of("photos_refit2", "_regions", half) == "photos_refit2"
