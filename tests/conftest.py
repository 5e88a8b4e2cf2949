"""Shared fixtures: folders of small images in three kinds, and an encoder cache of the test's own."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer.main
from PIL import Image

from mg_milvus.images import limits
from tests import computed_features, memory_store
from tests.images import collage

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from mg_milvus.index import ImageIndex

memory_store.install()
# Typer builds all commands for every call of one, a twelfth of a second.
typer.main.get_command = cache(typer.main.get_command)

PER_KIND = 20
KINDS = ("disc", "stripes", "blocks")


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker one core and all the folder of computed features; refuse a runtime that this CPU cannot compute.

    Without VNNI, products of 8 bits saturate.
    """
    if config.getoption("numprocesses", None):
        # Before the workers start: numpy's BLAS reads it when numpy is imported. More threads would only be in each
        # other's way, and those of a BLAS wait busily.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if computed_features.VARIABLE not in os.environ:  # xdist's workers have that of the process that started them
        folder = tempfile.mkdtemp(prefix="mgm-features-")
        os.environ[computed_features.VARIABLE] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    if "MGM_RUNTIME" not in os.environ:
        return
    from mg_milvus.encoder.onnx_runtime import forced_runtime, has_fast_int8

    if forced_runtime() == "onnx-int8" and not has_fast_int8():
        pytest.exit("MGM_RUNTIME is onnx-int8, and this CPU has no VNNI: nothing to test", returncode=0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores, for tests of servers and of the page wait a lot; each takes up to 3 GB of memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min((os.cpu_count() or 1) + 1, memory // 3_000_000_000))


def pytest_report_header() -> str:
    """Which runtime the encoders of the tests use."""
    return f"encoder runtime: {os.environ.get('MGM_RUNTIME') or 'the default of this machine'}"


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """Escape what UTF-8 cannot encode: workers could not report a failure that shows a file name of other bytes."""
    return _escaped((yield))


def _escaped(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {name: _escaped(each) for name, each in value.items()}
    return type(value)(map(_escaped, value)) if isinstance(value, (list, tuple)) else value


LONGEST = (
    "server/test_server.py",
    "integration/test_training.py",
    "web/test_browser.py",
    "web/test_browser_act.py",
    "web/test_browse.py",
    "web/test_ten_minutes.py",
    "web/test_api.py",
    "web/test_look.py",
)
"""Files without a test that is marked as slow that take a minute or more, or half a minute and would come last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long first, so that no worker begins with them when the others are done."""
    long = {item.path for item in items if item.get_closest_marker("slow") or item.path.as_posix().endswith(LONGEST)}
    items.sort(key=lambda item: item.path not in long)


COMPUTES = re.compile("encoder|onnx|efficientnet|one_core|leaks|memory|costs|recall|explanation")
"""In the names of files: what they test is the computation itself, or what it takes."""


@pytest.fixture(autouse=True, scope="module")
def _computed_features(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same images take the same network once, and have heads fitted once, but where these are what is tested."""
    folder = None if COMPUTES.search(request.path.name) else os.environ[computed_features.VARIABLE]
    computed_features.install(folder)
    yield
    computed_features.install(None)


@pytest.fixture(autouse=True)
def _log_of_lines() -> Iterator[None]:
    """Undo what a command in this process chose: ``--log-json``, the tokens to hide, ``--max-pixels``."""
    yield
    if log := sys.modules.get("mg_milvus.cli.log"):
        log.configure([])
    limits.limit_pixels(None)


def kind_of_image(kind: str, seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """An image of one of three kinds; those of a kind differ in colours, place and scale."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    width, height = size
    y, x = np.mgrid[:height, :width]
    if kind == "disc":
        centre = random.uniform(0.3, 0.7, 2) * (width, height)
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (random.uniform(0.2, 0.35) * height * 1.2) ** 2
    elif kind == "stripes":
        inside = ((x + y * random.uniform(-0.3, 0.3)) // random.integers(5, 10)) % 2 == 0
    else:
        inside = ((x // random.integers(12, 20)) + (y // random.integers(12, 20))) % 2 == 0
    colours = random.integers(0, 256, (2, 3))
    noise = random.normal(0, 6, (height, width, 3))
    pixels = np.where(inside[..., None], colours[0], colours[1]) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_photos(folder: Path, per_kind: int = PER_KIND) -> Path:
    """``folder/KIND/NN.jpg``, ``per_kind`` of each of the three kinds."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(per_kind):
            kind_of_image(kind, number).save(folder / kind / f"{number:02}.jpg", quality=92)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """60 images in three folders: enough to fit heads on."""
    return make_photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def labelled_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 60 images for several modules, which leave them as they are."""
    return make_photos(tmp_path_factory.mktemp("labelled") / "photos")


@pytest.fixture(scope="session")
def labelled_index(labelled_photos: Path) -> Iterator[ImageIndex]:
    """They in memory, with the fields ``kind`` and ``number``; whoever adds a row takes it away again."""
    from mg_milvus.index import ImageIndex
    from mg_milvus.schema.models import Schema

    fields = "[{name: kind, type: string, default: ''}, {name: number, type: int, default: 0}]"
    table = labelled_photos.with_name("table.csv")
    rows = [f"{path},{path.parent.name},{int(path.stem)}" for path in sorted(labelled_photos.rglob("*.jpg"))]
    table.write_text("\n".join(["path,kind,number", *rows]))
    with ImageIndex.open("memory:", schema=Schema.from_yaml(f"version: 1\nfields: {fields}")) as opened:
        opened.ingest(labelled_photos, metadata=table)
        yield opened


@pytest.fixture(scope="session")
def collages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of four different ones each."""
    folder = tmp_path_factory.mktemp("collages")
    for seed in range(60):
        collage(seed).save(folder / f"{seed:02}.png")
    return folder


@pytest.fixture(scope="session")
def collage_index(collages: Path) -> Iterator[ImageIndex]:
    """They in memory, with codes of 13 regions each; nobody changes it."""
    from mg_milvus.index import ImageIndex
    from mg_milvus.schema.models import Schema

    parts = "{bits: 128, scales: [{size: 0.7, grid: 2}, {size: 0.5, grid: 3}]}"
    with ImageIndex.open("memory:", schema=Schema.from_yaml(f"version: 1\nregions: {parts}")) as opened:
        opened.ingest(collages)
        yield opened


@pytest.fixture(scope="session")
def copied_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageIndex]:
    """42 images in memory, and a copy of two of them; nobody changes it."""
    from mg_milvus.index import ImageIndex

    folder = make_photos(tmp_path_factory.mktemp("copied") / "photos", 14)
    for name in ("disc/05", "blocks/09"):
        shutil.copy(folder / f"{name}.jpg", folder / f"{name}-copy.jpg")
    with ImageIndex.open("memory:") as opened:
        opened.ingest(folder)
        yield opened


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def _own_cache(_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees encoders or settings of another, or of the person who runs it."""
    # By mkdtemp: pytest's mktemp lists the folder at each call, where there are thousands.
    monkeypatch.setenv("XDG_CACHE_HOME", tempfile.mkdtemp(dir=_caches))
    for name in (
        "URI",
        "TOKEN",
        "COLLECTION",
        "DEVICE",
        "SCHEMA",
        "BATCH_SIZE",
        "WORKERS",
        "ENCODER",
        "DEBUG",
        "MAX_PIXELS",
    ):
        monkeypatch.delenv(f"MGM_{name}", raising=False)
