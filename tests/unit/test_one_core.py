"""One core for linear algebra: while it is asked for and not longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from mg_milvus.encoder import base
from mg_milvus.encoder.base import one_core
from mg_milvus.encoder.hash_heads import Head, Statistics, fit_head
from mg_milvus.encoder.load import load_encoder

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


def test_heads_are_fitted_and_batches_hashed_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder()
    seen: dict[str, set[int]] = {}

    def fitted(sample: np.ndarray, bits: int, shipped: Statistics | None) -> Head:
        seen["fit"] = cores()
        return fit_head(sample, bits, shipped)

    monkeypatch.setattr(base, "fit_head", fitted)
    moments = encoder.state.statistics["fine"]
    random = np.random.default_rng(0)
    sample = moments.mean + random.standard_normal((60, len(moments.factor)), np.float32) @ moments.factor
    made = encoder.adapted({"fine": sample}, {"fine": 16})

    def hashed(values: np.ndarray) -> np.ndarray:
        seen["hash"] = cores()
        return np.packbits(values > 0, axis=1)

    monkeypatch.setattr(base, "pack", hashed)
    made.encode([np.zeros((3, 32, 32), np.uint8)] * 2)
    assert seen == {"fit": {1}, "hash": {1}}
    assert cores() == {3}
