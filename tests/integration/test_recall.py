"""What an index misses, counted against every row."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mg_milvus import doctor
from mg_milvus.config import MilvusConfig
from mg_milvus.doctor import index_recall
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import image_id
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Neighbours, Row
from mg_milvus.store.milvus import open_store
from tests.in_process import mgm
from tests.memory_store import MemoryStore

SCHEMA = Schema.model_validate({"granularities": [{"name": "fine", "bits": 4096}, {"name": "line", "bits": 8}]})


def filled(store, number: int = 3000):
    """Rows with random ``fine`` codes; ``line`` has the same code everywhere."""
    encoder = load_encoder()
    store.create(Description(SCHEMA, encoder.fingerprint))
    store.put_encoder(encoder.fingerprint, encoder.to_bytes())
    random = np.random.default_rng(0)
    names = [f"/{n}.jpg" for n in range(number)]
    codes = [{"fine": random.bytes(512), "line": b"\0"} for _ in names]
    rows = [Row(image_id(n), n, 1, 1, 1, 1, "0" * 32, c) for n, c in zip(names, codes, strict=True)]
    store.upsert(rows)
    return store


class Forgetful(MemoryStore):
    """An index that sees only the rows whose id begins with one of the first digits."""

    seen = "01234567"

    def nearest(self, granularity, codes, depth, where=None):
        answers = super().nearest(granularity, codes, self.count(), where)
        kept = [[(i, d) for i, d in zip(a.ids, a.distances, strict=True) if i[0] in self.seen][:depth] for a in answers]
        return [Neighbours([i for i, _ in k], np.array([d for _, d in k], np.int32)) for k in kept]


def test_an_exact_index_misses_nothing_and_ties_are_no_misses():
    assert index_recall(filled(MemoryStore("images")), ("fine", "line")) == {"fine": 1.0, "line": 1.0}


def test_an_index_that_sees_half_of_the_rows():
    found = index_recall(filled(Forgetful("images")), ("fine", "line"), k=10, queries=100)
    # Which of the ten nearest begin with 0 to 7 is chance: 1,000 draws of one half; with so many bits few distances are
    # equal. Where all rows are equal, any row is right.
    assert found["line"] == 1.0
    assert found["fine"] == pytest.approx(0.5, abs=0.07)


def test_few_rows_and_none():
    assert index_recall(filled(MemoryStore("images"), 3), ("fine",)) == {"fine": 1.0}
    empty = MemoryStore("images")
    empty.create(Description(SCHEMA, "0" * 16))
    assert index_recall(empty, ("fine",)) == {}


def test_the_doctor_says_it(tmp_path):
    filled(open_store(MilvusConfig(str(tmp_path / "mgm.db"), collection="images")), 50).close()
    done = mgm("doctor", "--recall", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check = json.loads(done.stdout)["checks"][-1]
    assert check["message"] == "of the 10 nearest, the index finds: fine 1.000, line 1.000"
    check = doctor._recall(filled(Forgetful("images")))
    assert not check.ok
    assert check.remedy.startswith("a higher nprobe than 32: mgm export, then mgm load --schema with it")
