"""Files of every format that were made to do harm, beyond tests/test_hostile_*.py: one line, in little time and memory.

Pipes and devices behind names, numbers and nesting without an end, checkpoints and encoders that lie, folders of codes.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer
from safetensors.torch import save

from mg_milvus import errors
from mg_milvus.bulk.dataset import CodeFolder, Shard
from mg_milvus.bulk.encode import encode
from mg_milvus.bulk.transfer import complete_files
from mg_milvus.cli.settings import settings_from
from mg_milvus.encoder import file, weights
from mg_milvus.encoder.hash_heads import DiffusionHead
from mg_milvus.encoder.load import load_encoder, untrained_encoder
from mg_milvus.evaluation.labels import read_labelled
from mg_milvus.evaluation.protocols import relevance_from_pairs
from mg_milvus.files import open_plain, read_plain
from mg_milvus.index import ImageIndex
from mg_milvus.ingest import metadata
from mg_milvus.ingest.metadata import read_metadata
from mg_milvus.schema.models import ExtraField, Schema
from mg_milvus.training.checkpoint import load_checkpoint, refuse_unfinished
from mg_milvus.training.config import TrainingConfiguration
from tests.conftest import make_photos
from tests.found_images import images
from tests.images import save_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIELDS = (ExtraField(name="kind", type="string", default=""),)
GOOD = load_encoder().to_bytes()
unix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """A test that waits for a pipe ends with an error, and not with the patience of whoever runs it."""
    if not hasattr(os, "fork"):
        yield
        return
    import signal

    def late(*_: object) -> None:
        raise TimeoutError("this waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def one_line(error: BaseException, most: int = 900) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < most
    return text


# Pipes and devices where files are expected


def in_the_settings(path: Path) -> None:
    (path.parent / "mgm.yaml").symlink_to(path)
    os.chdir(path.parent)
    settings_from()


def in_a_folder_of_codes(path: Path) -> None:
    path.rename(path.with_name("shard-0001-of-0001.json"))
    CodeFolder(path.parent).finished(Shard())


def as_codes(path: Path) -> None:
    name = "shard-0001-of-0001-000000-00000000.parquet"
    path.rename(path.with_name(name))
    with CodeFolder(path.parent).part(name):
        pass


def as_an_encoder_of_codes(path: Path) -> None:
    path.rename(path.with_name(f"encoder-{'0' * 16}.safetensors"))
    CodeFolder(path.parent).encoder("0" * 16)


def as_a_table(suffix: str) -> Callable[[Path], object]:
    return lambda path: read_metadata(path.rename(path.with_suffix(suffix)), FIELDS, [str(path.parent)])


READERS: dict[str, Callable[[Path], object]] = {
    "schema": Schema.load,
    "training": TrainingConfiguration.load,
    "settings": in_the_settings,
    "encoder": load_encoder,
    "weights": lambda path: untrained_encoder("efficientnet_lite0", path),
    "safetensors weights": lambda path: untrained_encoder(
        "efficientnet_lite0", path.rename(path.with_suffix(".safetensors"))
    ),
    "checkpoint": load_checkpoint,
    "csv": as_a_table(".csv"),
    "tsv": as_a_table(".tsv"),
    "jsonl": as_a_table(".jsonl"),
    "parquet": as_a_table(".parquet"),
    "mark": in_a_folder_of_codes,
    "codes": as_codes,
    "encoder of codes": as_an_encoder_of_codes,
}


@unix
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_neither_waited_for_nor_read(
    reader: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "inside" / "it"
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises((errors.MgMilvusError, typer.BadParameter)) as caught:
        READERS[reader](path)
    one_line(caught.value)


@unix
def test_a_list_that_names_a_pipe_goes_on_with_the_next(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "shots.tar")
    os.mkfifo(tmp_path / "shots.parquet")
    good = save_image(tmp_path / "good.png", 1)
    (tmp_path / "list.txt").write_text("shots.tar\nshots.parquet\ngood.png\n")
    failures: list = []
    found = list(images([tmp_path / "list.txt"], Shard(), failures.append))
    assert [each.path for each in found] == [str(good)]
    assert [failure.path.rpartition("/")[2] for failure in failures] == ["shots.tar", "shots.parquet"]
    assert all("pipe or a device" in failure.reason for failure in failures)


def test_only_so_much_of_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"12345")
    assert read_plain(file, 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, at most 4 are read"):
        read_plain(file, 4)
    os.truncate(file, 1 << 40)  # sparse: takes no room
    with pytest.raises(OSError, match="it has 1,099,511,627,776 bytes"):
        read_plain(file, 4)
    with pytest.raises(errors.EncoderError, match="1,099,511,627,776 bytes"):
        load_encoder(file)
    with pytest.raises(errors.TrainingError, match="1,099,511,627,776 bytes"):
        load_checkpoint(file)
    with open_plain(file) as opened:
        assert not opened.writable()


# YAML

YAML = {
    "a fraction of base 60": "1" + ":59" * 20_000 + ".5",
    "a number of base 60": "1" + ":59" * 20_000,
    "a number of base 16": "0x" + "f" * 60_000,
    "a number of base 2": "0b" + "1" * 60_000,
    "more than the largest fraction": "1.0e+999999",
    "infinite": ".inf",
    "no number": ".nan",
}


@pytest.mark.parametrize("kind", YAML)
def test_numbers_of_yaml_that_nothing_can_hold(kind: str, tmp_path: Path) -> None:
    number = YAML[kind]
    file = tmp_path / "it.yaml"
    for text in (f"seed: {number}", f"patience: {number}", f"optimisation: {{rate: {number}}}"):
        file.write_text(text)
        with pytest.raises(errors.TrainingError) as untrained:
            TrainingConfiguration.load(file)
        one_line(untrained.value)
    file.write_text(f"granularities:\n- name: fine\n  bits: {number}\n  weight: {number}\n")
    with pytest.raises(errors.SchemaError) as caught:
        Schema.load(file)
    assert all(len(line) < 300 for line in str(caught.value).splitlines())


def test_seeds_are_those_that_a_training_can_use(tmp_path: Path) -> None:
    file = tmp_path / "it.yaml"
    file.write_text("seed: 100000000")
    seed = TrainingConfiguration.load(file).seed
    torch.manual_seed((seed * 100_003 + 1000) * 1_000_003 + 10**9)  # as the batches do
    file.write_text("seed: 100000001")
    with pytest.raises(errors.TrainingError, match="seed"):
        TrainingConfiguration.load(file)


# Checkpoints

COURSES = {
    "deep": "[" * 100_000,
    "deep inside": '{"setup": ' + '{"a":' * 5_000 + "1" + "}" * 5_000 + "}",
    "an epoch of text": {"setup": {"configuration": {"phases": [{"epochs": 3}], "patience": 1}}, "epoch": "many"},
    "no parts": {"setup": {}, "pieces": 0},
    "before the first epoch": {"setup": {}, "epoch": -1},
    "a setup that is a list": {"setup": [1]},
    "no setup": {},
    "more": {"setup": {}, "code": "os.system('x')"},
    "a list": [1],
    "nothing": "",
}


@pytest.mark.parametrize("kind", COURSES)
def test_a_checkpoint_that_lies_is_refused(kind: str, tmp_path: Path) -> None:
    file, told = tmp_path / "c.safetensors", COURSES[kind]
    text = told if isinstance(told, str) else json.dumps(told)
    file.write_bytes(save({"a": torch.zeros(2)}, metadata={"mg_milvus_training": text}))
    with pytest.raises(errors.TrainingError, match="is not a checkpoint of mgm train, or is damaged") as caught:
        load_checkpoint(file)
    one_line(caught.value)
    refuse_unfinished(file)  # nothing that anybody could go on from


def test_a_checkpoint_that_is_a_pickle_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Runs()}, file)
    with pytest.raises(errors.TrainingError, match="is not a checkpoint"):
        load_checkpoint(file)
    assert not (tmp_path / "ran").exists()


# Encoder files

SHIPPED = file.from_bytes(GOOD, "it")
FINE = SHIPPED.heads["fine"]


def diffusion(**changes: object) -> DiffusionHead:
    random = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    whole = {
        "mean": FINE.mean, "axes": matrix(len(FINE.mean), 8), "anchors": matrix(6, 8), "embedding": matrix(6, 4),
        "rows": np.eye(7, 8, dtype=np.int8),
        "centre": np.zeros(12, np.float32), "projection": matrix(12, 64), "neighbours": 3,
        "own": 4, "reach": 0.5,
    }  # fmt: skip
    return DiffusionHead(**(whole | changes))  # type: ignore[arg-type]


HEADS = {
    "neighbours that are no number": lambda: diffusion(neighbours=np.float32("nan")),
    "infinite neighbours": lambda: diffusion(neighbours=np.float32("inf")),
    "two numbers of neighbours": lambda: diffusion(neighbours=np.array([1, 2], np.float32)),
    "fewer than no neighbours": lambda: diffusion(neighbours=-5),
    "no neighbours": lambda: diffusion(neighbours=0),
    "more neighbours than anchors": lambda: diffusion(neighbours=2**40),
    "no anchors": lambda: diffusion(anchors=np.zeros((0, 8), np.float32), embedding=np.zeros((0, 4), np.float32)),
    "more of its own anchors than there are": lambda: diffusion(own=7),
    "fewer of its own anchors than neighbours": lambda: diffusion(own=2),
    "a sample that reaches nowhere": lambda: diffusion(reach=0),
    "a sample that reaches to infinity": lambda: diffusion(reach=np.float32("inf")),
    "two reaches": lambda: diffusion(reach=np.array([1, 2], np.float32)),
    "rows that are no bytes": lambda: diffusion(rows=np.eye(7, 8, dtype=np.float32)),
    "no rows": lambda: diffusion(rows=np.zeros((0, 8), np.int8)),
    "rows of another length": lambda: diffusion(rows=np.eye(7, 9, dtype=np.int8)),
    "a number as rows": lambda: diffusion(rows=np.int8(1)),
    "anchors in a row": lambda: diffusion(anchors=np.zeros(8, np.float32)),
    "a number as anchors": lambda: diffusion(anchors=np.float32(1)),
    "a projection in a row": lambda: diffusion(projection=np.zeros(12, np.float32)),
    "a projection of a plain head in a row": lambda: replace(FINE, projection=FINE.projection[:, 0]),
    "a projection that is a number": lambda: replace(FINE, projection=FINE.projection[0, 0]),
}


def crafted(**changes: object) -> bytes:
    return file.to_bytes(SHIPPED.model_copy(update=changes))


def test_a_head_of_this_kind_works_when_nothing_is_wrong() -> None:
    assert load_encoder(crafted(heads={**SHIPPED.heads, "fine": diffusion()})).bits["fine"] == 64


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_cannot_work_is_refused(kind: str) -> None:
    data = crafted(heads={**SHIPPED.heads, "fine": HEADS[kind]()})
    with pytest.raises(errors.EncoderError, match="the head of fine does not work") as caught:
        load_encoder(data)
    one_line(caught.value)


@pytest.mark.parametrize("name", ["mean", "factor", "nuisance"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    moments = SHIPPED.statistics["fine"]
    spoiled = np.array(getattr(moments, name))
    spoiled.flat[0] = value
    data = crafted(statistics={**SHIPPED.statistics, "fine": replace(moments, **{name: spoiled})})
    with pytest.raises(errors.EncoderError, match="the statistics of fine hold values that are no numbers"):
        load_encoder(data)


REGION_SCALES = {
    "a million windows along each side": ((0.5, 10**6),),
    "more than can be counted": ((0.5, 10**15),),
    "fewer than none": ((0.5, -3),),
    "none": ((0.5, 0),),
    "larger than the image": ((1e308, 2),),
    "smaller than nothing": ((-1.0, 2),),
    "many scales": ((0.5, 2),) * 10_000,
}


@pytest.mark.parametrize("kind", REGION_SCALES)
def test_an_encoder_cannot_ask_for_more_regions_than_a_schema(kind: str) -> None:
    configuration = SHIPPED.configuration.model_copy(update={"regions": REGION_SCALES[kind]})
    with pytest.raises(errors.EncoderError, match=r"cannot read \((expected windows of|there are 40000 regions)"):
        load_encoder(crafted(configuration=configuration))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """They would give every image the same code, and nobody would be told."""
    name = next(name for name, values in SHIPPED.backbone.items() if values.dtype.kind == "f")
    backbone = {**SHIPPED.backbone, name: SHIPPED.backbone[name] * np.float32("nan")}
    fingerprint = weights.weights_fingerprint(backbone)
    configuration = SHIPPED.configuration.model_copy(update={"backbone_fingerprint": fingerprint})
    with pytest.raises(errors.EncoderError, match=f"the weights {name} hold values that are no numbers"):
        load_encoder(crafted(backbone=backbone, configuration=configuration))
    torch.save({key: torch.from_numpy(np.array(values)) for key, values in backbone.items()}, tmp_path / "w.pth")
    with pytest.raises(errors.EncoderError, match=f"the weights {name} hold values that are no numbers"):
        untrained_encoder("efficientnet_lite0", tmp_path / "w.pth")


# Tables

WIDE = json.dumps({f"column{place}": 1 for place in range(50_000)})
TABLES: dict[str, tuple[str, str]] = {
    "columns": ("t.jsonl", WIDE),
    "the same column": ("t.csv", ",".join(["c"] * 50_000)),
    "a long path": ("t.jsonl", json.dumps({"path": "a" * 100_000, "label": "x", "kind": 1})),
    "a list as a path": ("t.jsonl", json.dumps({"path": ["a"] * 100_000, "label": "x", "kind": "x"})),
    "labels of nothing": ("t.jsonl", json.dumps({"path": "a.png", "label": [""] * 100_000, "kind": 1})),
    "halves of characters": ("t.jsonl", '{"path": "\\ud800.png", "label": "x", "kind": 1}'),
    "a zero": ("t.jsonl", '{"path": "\\u0000.png", "label": "x", "kind": 1}'),
    "depth": ("t.jsonl", '{"path": "a.png", "label": ' + "[" * 50_000 + "]" * 50_000 + "}"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_labels_pairs_and_fields_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 1)
    name, text = TABLES[kind]
    file = tmp_path / name
    file.write_text(text + "\n")
    pairs = tmp_path / f"pairs-{name}"
    pairs.write_text(text.replace('"path"', '"query"').replace('"label"', '"relevant"') + "\n")
    for read in (
        lambda: read_labelled(tmp_path, file),
        lambda: read_metadata(file, FIELDS, [str(tmp_path)]),
        lambda: relevance_from_pairs(tmp_path, pairs, lambda _: None),
    ):
        with pytest.raises((errors.LabelError, errors.SchemaError)) as caught:
            read()
        one_line(caught.value)


def test_rows_without_an_end_are_refused_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "_ROW_CHARACTERS", 1000)
    row = '"x\n",' * 400  # cells in quotes go on in the next line: no line is long
    for name, text in {
        "long.csv": "path,kind\n" + "x" * 1001, "lines.csv": "path,kind\n" + row, "header.csv": row,
        "long.jsonl": " " * 1001,
    }.items():  # fmt: skip
        file = tmp_path / name
        file.write_text(text)
        with pytest.raises(errors.SchemaError, match="the row is longer than 1,000"):
            read_metadata(file, FIELDS, [str(tmp_path)])
    several = tmp_path / "several.csv"
    several.write_text("path,kind\n" + "".join(f'{place}.png,"a\nb"\n' for place in range(500)))
    assert len(read_metadata(several, FIELDS, [str(tmp_path)]).unmatched) == 500


# Tars


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_tar_of_headers_of_headers(kind: bytes, tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, 2 * (kind == tarfile.GNUTYPE_LONGNAME)
    content = b"a\0" + bytes(510) if header.size else b""
    file = tmp_path / "it.tar"
    file.write_bytes((header.tobuf(tarfile.USTAR_FORMAT) + content) * 3000 + bytes(1024))
    failures: list = []
    assert list(images([file], Shard(), failures.append)) == []
    assert [failure.path for failure in failures] == [str(file)]
    assert "nested headers" in failures[0].reason


# Folders of codes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shard-0000-of-0000.json", "there is no shard 0/0"),
        ("shard-0005-of-0002.json", "there is no shard 5/2"),
        ("shard-0001-of-999999.json", r"lacks the shards 1/999999, 2/999999, .* and 999994 more"),
        ("shard-0001-of-99999999999999.json", "has no files of codes"),
    ],
)
def test_names_of_shards_that_lie(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    (tmp_path / f"{name.removesuffix('.json')}-000000-00000000.parquet").write_bytes(b"")
    if "999999." in name:
        (tmp_path / name).unlink()
    with pytest.raises(errors.CodeFileError, match=message) as caught:
        complete_files(CodeFolder(tmp_path), partial=False)
    one_line(caught.value)


def test_a_mark_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.parquet").write_bytes(b"x")
    folder = tmp_path / "codes"
    folder.mkdir()
    (folder / "shard-0001-of-0001-000000-00000000.parquet").write_bytes(b"")
    (folder / "shard-0001-of-0001.json").write_text(json.dumps({"files": {"../secret.parquet": 1}}))
    with pytest.raises(errors.CodeFileError, match=r"has lost ../secret.parquet"):
        complete_files(CodeFolder(folder), partial=False)


def test_nothing_reads_pickles_or_arrays_of_numpy() -> None:
    """Neither is a format of ours; both run code, or may, when they are loaded.

    ImageNet weights come as pickles: a single file, known by its SHA-256, and limited to tensors all the same (see
    test_efficientnet.py).
    """
    import mg_milvus

    forbidden = re.compile(
        r"pickle|np\.load\(|numpy\.load\(|joblib|marshal|shelve|yaml\.(?:unsafe_)?load\(|(?<!\.)\b(?:eval|exec)\("
    )
    package = Path(mg_milvus.__file__).parent
    found = [
        f"{file.relative_to(package)}: {line.strip()}"
        for file in sorted(package.rglob("*.py"))
        if file.name != "imagenet.py"
        for line in file.read_text(encoding="utf-8").splitlines()
        if forbidden.search(line)
    ]
    assert [line for line in found if '"""' not in line and "#" not in line] == []


def test_a_row_of_codes_cannot_take_the_place_of_another_image(tmp_path: Path) -> None:
    """Rows are found by an id that is made from the path; a file of codes that says otherwise is not loaded."""
    encode(make_photos(tmp_path / "photos", 1), out=tmp_path / "codes", encoder="builtin")
    (file,) = (tmp_path / "codes").glob("*.parquet")
    table = pq.read_table(file)
    paths = table.column("path").to_pylist()
    forged = table.set_column(table.schema.get_field_index("path"), table.schema.field("path"), [paths[::-1]])
    pq.write_table(forged, file)
    with ImageIndex.open("memory:") as index, pytest.raises(errors.CodeFileError, match="is not the id of") as caught:
        index.load(tmp_path / "codes")
    one_line(caught.value)
