"""The plan of the house, held: imports go strictly downwards, heavy packages stay in their rooms."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mg_milvus
from mg_milvus import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(mg_milvus.__file__).parent

PLAN = (
    ("errors", "plain_files", "private", "display"),
    ("notebook",),
    ("codes", "hits", "meters", "regions"),
    ("schema", "metrics", "code_health"),
    ("encoder", "store", "fusion", "images", "metadata"),
    ("connection", "search", "duplicates", "labels", "recall"),
    ("index", "ingest", "bulk", "browse"),
    ("training", "fitting"),
    ("evaluation", "capacity", "pages", "doctor"),
    ("web",),
    ("cli",),
)
ROWS = {room: height for height, rooms in enumerate(PLAN) for room in rooms}
ABOVE_EVERYTHING = frozenset({"__init__", "__main__"})
SAME_ROW = frozenset({("index", "ingest"), ("index", "bulk"), ("bulk", "ingest")})
# Modules that make one room together, like the modules of a package.
PART_OF = {
    "schema_file": "schema",
    "schema_diff": "schema",
    "schema_errors": "schema",
    "schema_parts": "schema",
    "question": "search",
    "candidates": "search",
    "part_search": "search",
    "explanation": "search",
    "answer": "search",
    "encoder_cache": "connection",
    "ties": "metrics",
    "capacity_tables": "capacity",
}

BORDERS = {
    "torch": {"encoder", "training"},
    "torchvision": {"encoder", "training"},
    "onnxruntime": {"encoder"},
    "safetensors.torch": {"encoder", "training"},
    "pymilvus": {"store", "bulk"},
    "milvus_lite": {"store", "bulk"},
    "typer": {"cli"},
    "rich": {"cli"},
    "fastapi": {"web"},
    "starlette": {"web"},
    "uvicorn": {"web"},
    "sklearn": set(),
    "skimage": set(),
}


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, anywhere in it; a relative import begins with a dot."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                origin = "." * level + (module or "")
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def room_of(module: str) -> str:
    """The room of a module or package directly under mg_milvus."""
    return PART_OF.get(module, module)


def complaint(room: str, name: str) -> str | None:
    """Why this room may not import this name; None when it may."""
    if name.startswith("."):
        return "relative import"
    own, _, rest = name.partition(".")
    if own != "mg_milvus":
        strayed = [package for package in BORDERS if f"{name}.".startswith(f"{package}.")]
        return None if not strayed or room in BORDERS[strayed[0]] else f"{strayed[0]} is not at home in {room}"
    target = room_of(rest.partition(".")[0])
    if room in ABOVE_EVERYTHING or target in {room, "__version__"}:
        return None
    if target not in ROWS:
        return f"{target or 'the package itself'} is above {room}"
    if ROWS[target] > ROWS[room]:
        return f"{target} is above {room}"
    if ROWS[target] == ROWS[room] and (room, target) not in SAME_ROW:
        return f"{target} is beside {room}"
    return None


def violations(package: Path) -> list[str]:
    """Every breach of the layer table and of the borders under a package folder, as "file:line name: why", sorted."""
    found = []
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        room = room_of(inside.parts[0].removesuffix(".py"))
        if room not in ROWS and room not in ABOVE_EVERYTHING:
            found.append(f"{inside.as_posix()}: {room} is no room of the plan")
            continue
        for line, name in imported(ast.parse(file.read_bytes())):
            reason = complaint(room, name)
            if reason:
                found.append(f"{inside.as_posix()}:{line} {name}: {reason}")
    return found


def test_the_house_follows_its_plan() -> None:
    assert violations(PACKAGE) == []


def build(root: Path, files: dict[str, str]) -> Path:
    package = root / "mg_milvus"
    for name, text in files.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return package


def test_a_good_house_has_no_violations(tmp_path: Path) -> None:
    house = {
        "__init__.py": "from mg_milvus.index import ImageIndex\n",
        "__main__.py": "from mg_milvus.cli.app import main\n",
        "errors.py": "import json\n",
        "index.py": "from mg_milvus import ingest, __version__\nfrom mg_milvus.store import open_store\n",
        "ingest.py": "from mg_milvus.images.decode import read\n",
        "images/decode.py": "from mg_milvus.images.discover import walk\nfrom mg_milvus.errors import PictureError\n",
        "images/discover.py": "import os\n",
        "schema.py": "from mg_milvus.schema_file import load\n",
        "schema_file.py": "from mg_milvus.schema_errors import explain\n",
        "encoder/network.py": "import torch.nn\nfrom torchvision import models\nfrom safetensors import torch\n",
        "store/milvus.py": "def connect():\n    import pymilvus\n",
        "cli/app.py": "import typer\nimport rich.console\n",
    }
    assert violations(build(tmp_path, house)) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (
            "codes.py",
            "from mg_milvus.schema import Schema",
            "codes.py:1 mg_milvus.schema.Schema: schema is above codes",
        ),
        ("hits.py", "import mg_milvus.codes", "hits.py:1 mg_milvus.codes: codes is beside hits"),
        ("ingest.py", "from mg_milvus import index", "ingest.py:1 mg_milvus.index: index is beside ingest"),
        ("store/memory.py", "import mg_milvus", "store/memory.py:1 mg_milvus: the package itself is above store"),
        (
            "store/memory.py",
            "from mg_milvus import ImageIndex",
            "store/memory.py:1 mg_milvus.ImageIndex: ImageIndex is above store",
        ),
        (
            "fusion.py",
            "def fuse():\n    from mg_milvus.store import Row",
            "fusion.py:2 mg_milvus.store.Row: store is beside fusion",
        ),
        (
            "errors.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mg_milvus.hits import Hit",
            "errors.py:3 mg_milvus.hits.Hit: hits is above errors",
        ),
        (
            "fusion.py",
            "import importlib\nimportlib.import_module('mg_milvus.index')",
            "fusion.py:2 mg_milvus.index: index is above fusion",
        ),
        ("images/decode.py", "from . import discover", "images/decode.py:1 ..discover: relative import"),
        ("index.py", "def f():\n    import torch", "index.py:2 torch: torch is not at home in index"),
        (
            "fitting.py",
            "from safetensors import torch",
            "fitting.py:1 safetensors.torch: safetensors.torch is not at home in fitting",
        ),
        (
            "index.py",
            "from pymilvus.exceptions import E",
            "index.py:1 pymilvus.exceptions.E: pymilvus is not at home in index",
        ),
        ("web/app.py", "import rich", "web/app.py:1 rich: rich is not at home in web"),
        ("cli/app.py", "import fastapi", "cli/app.py:1 fastapi: fastapi is not at home in cli"),
        (
            "evaluation/metrics.py",
            "from sklearn import metrics",
            "evaluation/metrics.py:1 sklearn.metrics: sklearn is not at home in evaluation",
        ),
        (
            "schema_file.py",
            "from mg_milvus.store import Row",
            "schema_file.py:1 mg_milvus.store.Row: store is above schema",
        ),
        ("attic.py", "", "attic.py: attic is no room of the plan"),
        ("__init__.py", "import torch", "__init__.py:1 torch: torch is not at home in __init__"),
    ],
)
def test_every_kind_of_breach_is_found(tmp_path: Path, file: str, text: str, expected: str) -> None:
    assert violations(build(tmp_path, {file: text})) == [expected]


def loaded_by(statement: str, packages: tuple[str, ...]) -> list[str]:
    """Which of the packages a fresh interpreter has loaded after a statement."""
    script = f"import sys\n{statement}\nprint(*(name for name in {packages!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_importing_the_library_is_light() -> None:
    heavy = ("torch", "torchvision", "pymilvus", "milvus_lite", "numpy", "pydantic", "PIL", "typer", "rich")
    assert loaded_by("import mg_milvus", heavy) == []


def test_importing_the_command_line_is_light() -> None:
    heavy = ("torch", "torchvision", "pymilvus", "milvus_lite", "pyarrow", "pandas")
    assert loaded_by("import mg_milvus.cli.app", heavy) == []


def test_the_watch_sees_what_is_loaded() -> None:
    assert loaded_by("import json, numpy", ("numpy", "torch", "json")) == ["numpy", "json"]


def test_public_names() -> None:
    error_names = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    others = {
        "Granularity", "Hit", "ImageIndex", "IngestReport", "Schema", "Tls", "TrainingConfiguration",
        "__version__", "evaluate", "fuse", "load_encoder", "train", "tune",
    }  # fmt: skip
    assert sorted(mg_milvus.__all__) == sorted(error_names | others)
    assert [name for name in mg_milvus.__all__ if getattr(mg_milvus, name, None) is None] == []
    assert set(mg_milvus.__all__) <= set(dir(mg_milvus))
