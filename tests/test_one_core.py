"""One core for linear algebra: while it is asked for and not longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from mg_milvus.encoder import load_encoder
from mg_milvus.encoder.one_core import one_core

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARIES = ThreadpoolController().select(user_api="blas")


def cores() -> set[int]:
    return {library["num_threads"] for library in LIBRARIES.info()}


@pytest.fixture(autouse=True)
def three_cores() -> Iterator[None]:
    if not LIBRARIES.info():
        pytest.skip("numpy's linear algebra has no threads that could be counted here")
    with LIBRARIES.limit(limits=3):
        yield


def test_the_limit_holds_inside_and_is_lifted_after_an_error() -> None:
    def fails() -> None:
        with one_core():
            assert cores() == {1}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert cores() == {3}


def test_heads_do_not_depend_on_the_number_of_cores() -> None:
    encoder = load_encoder()
    random = np.random.default_rng(0)
    sample = {
        name: (moments.mean + random.standard_normal((150, len(moments.factor)), np.float32) @ moments.factor)
        for name, moments in encoder.parts.statistics.items()
    }
    bits = {"coarse": 32, "mid": 64, "fine": 64}
    shared = encoder.adapted(sample, bits)
    assert cores() == {3}
    with LIBRARIES.limit(limits=1):
        assert encoder.adapted(sample, bits).fingerprint == shared.fingerprint
