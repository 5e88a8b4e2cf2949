"""Encoder files, settings and tables that were made to do harm: refused in one line, in little time and memory."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer

from mg_milvus import errors
from mg_milvus.bulk.dataset import Shard
from mg_milvus.cli.settings import settings_from
from mg_milvus.encoder import file, hash_heads
from mg_milvus.encoder.load import load_encoder
from mg_milvus.encoder.networks import read_weights
from mg_milvus.ingest.metadata import read_metadata
from mg_milvus.schema.models import ExtraField, Schema
from mg_milvus.training.config import TrainingConfiguration
from tests.found_images import images
from tests.images import encoded, image

GOOD = load_encoder().to_bytes()
LENGTH = int.from_bytes(GOOD[:8], "little")
HEADER = json.loads(GOOD[8 : 8 + LENGTH])
FIELDS = (ExtraField(name="kind", type="string", default=""), ExtraField(name="n", type="int", default=0))


def container(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def changed(change: Callable[[dict], object]) -> bytes:
    header = json.loads(json.dumps(HEADER))
    change(header)
    return container(header, GOOD[8 + LENGTH :])


FIRST, SECOND = [name for name in HEADER if name != "__metadata__"][:2]
MEAN = next(name for name in HEADER if name.startswith("heads.") and name.endswith(".mean"))
KEY = "mg_milvus_encoder"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"abc", container({}, length=2**63 - 1), container({}, length=2**64 - 1), container({}, length=100 << 20),
        container(b"[" * 200_000), container(b'{"a":' * 100_000), container({"__metadata__": "x"}),
        container({"__metadata__": [1]}), container([1]), b"\x80\x04cos\nsystem\n(S'false'\ntR.",
        changed(lambda h: h.update({FIRST: h[SECOND]})),
        changed(lambda h: h.update({FIRST: {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})),
        container({"a": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}),
        changed(lambda h: h[MEAN].update(dtype="I32")), changed(lambda h: h[MEAN].update(dtype="F8_E4M3")),
        changed(lambda h: h[MEAN].update(shape=[1, *h[MEAN]["shape"]])), changed(lambda h: h.update(zz=h.pop(MEAN))),
        changed(lambda h: h["__metadata__"].update({KEY: "[" * 100_000})),
        changed(lambda h: h["__metadata__"].update({KEY: h["__metadata__"][KEY].replace('"side":', '"side":999')})),
        container(HEADER, bytes(len(GOOD) - 8 - LENGTH)),
    ],
    ids=lambda data: f"{len(data)} bytes, {data[:12].hex()}",
)  # fmt: skip
def test_an_encoder_file_that_lies_is_refused(data: bytes) -> None:
    with pytest.raises(errors.EncoderError) as caught:
        load_encoder(data)
    assert "\n" not in str(caught.value)


HEADS: dict[str, Callable[[hash_heads.Head], hash_heads.Head]] = {
    "numbers that are none": lambda head: replace(head, projection=head.projection * np.nan),
    "fewer rows": lambda head: replace(head, projection=head.projection[:-3]),
    "a length that is no multiple of 8": lambda head: replace(head, projection=head.projection[:, :-3]),
    "no bits": lambda head: replace(head, projection=head.projection[:, :0]),
    "another mean": lambda head: replace(head, mean=head.mean[:-3]),
    "more dimensions": lambda head: replace(head, mean=head.mean[None, None]),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_was_made_to_fail_fails_when_it_is_loaded(kind: str) -> None:
    parts = file.from_bytes(GOOD, "it")
    name, head = next(iter(parts.heads.items()))
    crafted = file.to_bytes(parts.model_copy(update={"heads": {**parts.heads, name: HEADS[kind](head)}}))
    with pytest.raises(errors.EncoderError, match=rf"the head of {name} does not work") as caught:
        load_encoder(crafted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["coarse", "mid", "fine"])
def test_a_head_for_another_backbone_fails_when_it_is_loaded(name: str) -> None:
    """Consistent in itself, but of another width than what is read of the backbone."""
    parts = file.from_bytes(GOOD, "it")
    head, moments = parts.heads[name], parts.statistics[name]
    narrow = replace(head, mean=head.mean[:-8], projection=head.projection[:-8])
    wide = replace(moments, mean=np.append(moments.mean, moments.mean[:8]))
    other = replace(moments, factor=moments.factor[:, :-8])
    for change in ({"heads": {name: narrow}}, {"statistics": {name: wide}}, {"statistics": {name: other}}):
        ((attribute, changed_one),) = change.items()
        crafted = parts.model_copy(update={attribute: {**getattr(parts, attribute), **changed_one}})
        with pytest.raises(
            errors.EncoderError, match=rf"head of {name} does not work \(.*efficientnet_lite0 gives \d+ numb"
        ) as caught:
            load_encoder(file.to_bytes(crafted))
        assert "\n" not in str(caught.value)


def test_a_stage_that_the_backbone_does_not_have_is_refused() -> None:
    parts = file.from_bytes(GOOD, "it")
    pooling = parts.configuration.poolings["mid"].model_copy(update={"stages": ("head", "stage9")})
    poolings = {**parts.configuration.poolings, "mid": pooling}
    configuration = parts.configuration.model_copy(update={"poolings": poolings})
    with pytest.raises(
        errors.EncoderError,
        match="mid reads the stage 'stage9', efficientnet_lite0 has block8_expand, block11",
    ):
        load_encoder(file.to_bytes(parts.model_copy(update={"configuration": configuration})))


class Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.mark),)


def test_weights_that_would_run_code_do_not(tmp_path: Path) -> None:
    torch.save({"weight": Runs(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(errors.EncoderError, match="is not a file of weights"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


YAML = {
    "python": "uri: !!python/object/apply:builtins.open ['{mark}', w]",
    "a name of python": "uri: !!python/name:os.system",
    "aliases": "uri: &a [1, 1]\ntoken: &b [*a, *a]\nencoder: [*b, *b]",
    "depth": "[" * 5000,
    "depth in blocks": "\n".join(" " * depth + "a:" for depth in range(300)),
    "digits": "workers: " + "9" * 6000,
    "no day": "uri: 2020-99-99",
    "nul": "uri: \0",
    "binary": "uri: !!binary 'x'",
    "a list as a key": "? [a]\n: b",
    "a set": "!!set {a, b}",
    "size": "# " + "x" * 70_000,
    "an open quote": 'token: "hunter22\nuri: x',
    "a number as a token": "token: 2244668800",
    "a list as a URI": "uri: ['http://me:hunter22@there']",
}


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_was_made_to_do_harm(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mgm.yaml"
    file.write_text(YAML[kind].replace("{mark}", str(tmp_path / "ran")))
    with pytest.raises(typer.BadParameter) as wrong:
        settings_from()
    with pytest.raises(errors.TrainingError) as untrained:
        TrainingConfiguration.load(file)
    with pytest.raises(errors.SchemaError):
        Schema.load(file)
    for caught in (wrong, untrained):
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 400
        assert "hunter22" not in message
        assert "2244668800" not in message
    assert not (tmp_path / "ran").exists()


def text_column(values: list[bytes]) -> pa.Array:
    """A column of text that is not checked to be UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


TABLES = {
    "text.parquet": pa.table({"path": text_column([b"a\xff"]), "kind": ["x"], "n": [1]}),
    "times.parquet": pa.table({"path": ["a"], "kind": ["x"], "n": pa.array([2**62], pa.timestamp("us"))}),
    "types.parquet": pa.table({"path": [1], "kind": [b"a"], "n": ["x"]}),
    "nested.parquet": pa.table({"path": ["a"], "kind": [[["a"]]], "n": [{"x": 1}]}),
}
TEXTS = {
    "field.csv": b"path,kind,n\n" + b'"' + b"x" * 5_000_000 + b'",a,1\n',
    "quote.csv": b'path,kind,n\n"a.jpg,x,1\n' * 1000,
    "columns.csv": b"path,kind,n," + b",".join(b"c%d" % i for i in range(100_000)) + b"\n",
    "digits.csv": b"path,kind,n\na,x," + b"9" * 10_000 + b"\n",
    "depth.jsonl": b"[" * 100_000 + b"\n",
    "digits.jsonl": b'{"path":"a","kind":"","n":' + b"9" * 10_000 + b"}\n",
    "surrogate.jsonl": b'{"path":"a","kind":"\\udfff","n":1}\n',
    "long.jsonl": b'{"path":"a","kind":"' + b"x" * 3_000_000 + b'","n":1}\n',
    "list.jsonl": b'{"path":["' + b"a" * 10_000 + b'"],"kind":{"a":1},"n":[1]}\n',
    "footer.parquet": b"PAR1" + bytes(1000) + b"\xff\xff\xff\x7fPAR1",
    "thrift.parquet": b"PAR1" + bytes(8) + struct.pack("<I", 8) + b"PAR1",
}


@pytest.mark.parametrize("name", [*TABLES, *TEXTS])
def test_tables_that_were_made_to_do_harm(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name in TABLES:
        pq.write_table(TABLES[name], file)
    else:
        file.write_bytes(TEXTS[name])
    with pytest.raises(errors.SchemaError) as caught:
        read_metadata(file, FIELDS, [str(tmp_path)])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def spoiled(data: bytes, seed: int) -> bytes:
    chance = random.Random(seed)
    content = bytearray(data)
    for _ in range(chance.choice((1, 3, 10))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def test_spoiled_parquet_raises_nothing_else(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"path": ["a", "b"], "kind": ["x", "y"], "n": [1, 2], "jpg": [b"1", b"2"]}), sink)
    refused, several, file = 0, 0, tmp_path / "t.parquet"
    for seed in range(400):
        file.write_bytes(spoiled(sink.getvalue(), seed))
        try:
            read_metadata(file, FIELDS, [str(tmp_path)])
        except errors.SchemaError as error:
            refused += 1
            several += "\n" in str(error)
        failures: list[object] = []
        list(images([file], Shard(), failures.append))
    assert 50 < refused < 400
    assert several == 0


def test_a_tar_that_was_made_to_do_harm(tmp_path: Path) -> None:
    """Members are read where they lie: nothing is unpacked, so no name leads anywhere."""
    data = encoded(image(1), "PNG")
    file = tmp_path / "in" / "evil.tar"
    file.parent.mkdir()
    with tarfile.open(file, "w") as tar:
        for name in ("../../out.png", "/etc/out.png", "good.png", "a\nb.png", 'q"].png'):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind in {"s.png": tarfile.SYMTYPE, "h.png": tarfile.LNKTYPE, "c.png": tarfile.CHRTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        huge = tarfile.TarInfo("huge.png")
        huge.size = 1 << 60
        tar.addfile(huge)
    failures: list = []
    found = list(images([file], Shard(), failures.append))
    assert [each.path.removeprefix(f"{file}#") for each in found] == [
        "../../out.png", "/etc/out.png", "good.png", "a\nb.png", 'q"].png'
    ]  # fmt: skip
    assert all(each.read() == data for each in found)
    kinds = {failure.path.rpartition("#")[2]: failure.reason for failure in failures}
    assert set(kinds) >= {"s.png", "h.png", "c.png", "huge.png"}
    assert all("expected a plain file" in kinds[name] for name in ("s.png", "h.png", "c.png"))
    assert "has 1152921504606846976 bytes" in kinds["huge.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["in", "in/evil.tar"]
