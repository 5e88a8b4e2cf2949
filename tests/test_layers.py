"""The plan of the package, held: imports go strictly downwards, without circles; heavy packages stay in their rooms."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mg_milvus
from mg_milvus import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(mg_milvus.__file__).parent
MOST_ENTRIES = 26

ROWS = (
    ("errors",),
    ("codes", "records", "files"),
    ("config", "schema", "images"),
    ("encoder", "store", "html"),
    ("results", "session"),
    ("ingest", "search"),
    ("duplicates", "bulk"),
    ("index",),
    ("evaluation",),
    ("training", "doctor", "capacity"),
    ("web",),
    ("cli",),
)
"""Rooms, each a module or a package directly under ``mg_milvus``; a room imports from rows above it in this list."""

HEIGHT = {room: height for height, rooms in enumerate(ROWS) for room in rooms}
ABOVE_EVERYTHING = frozenset({"__init__", "__main__"})

BORDERS = {
    "torch": {"encoder", "training"},
    "torchvision": {"encoder", "training"},
    "onnxruntime": {"encoder"},
    "safetensors.torch": {"encoder", "training"},
    "pymilvus": {"store", "bulk"},
    "milvus_lite": {"store", "bulk"},
    "typer": {"cli"},
    "rich": {"cli"},
    "ray": {"bulk"},
    "fastapi": {"web"},
    "starlette": {"web"},
    "uvicorn": {"web"},
    "cv2": {"duplicates"},
    "sklearn": set(),
    "skimage": set(),
    "scipy": {"evaluation"},
}
"""Package -> the only rooms that may import it."""


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


def complaint(room: str, name: str) -> str | None:
    """Why this room may not import this name; None when it may."""
    if name.startswith("."):
        return "relative import"
    own, _, rest = name.partition(".")
    if own != "mg_milvus":
        strayed = [package for package in BORDERS if f"{name}.".startswith(f"{package}.")]
        return None if not strayed or room in BORDERS[strayed[0]] else f"{strayed[0]} is not at home in {room}"
    target = rest.partition(".")[0]
    if room in ABOVE_EVERYTHING or target in {room, "__version__"}:
        return None
    if target not in HEIGHT:
        return f"{target or 'the package itself'} is above {room}"
    if HEIGHT[target] >= HEIGHT[room]:
        return f"{target} is {'above' if HEIGHT[target] > HEIGHT[room] else 'beside'} {room}"
    return None


def violations(package: Path) -> list[str]:
    """Every breach of the rows and of the borders under a package folder, as "file:line name: why", sorted."""
    found = []
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        room = inside.parts[0].removesuffix(".py")
        if room not in HEIGHT and room not in ABOVE_EVERYTHING:
            found.append(f"{inside.as_posix()}: {room} is no room of the plan")
            continue
        for line, name in imported(ast.parse(file.read_bytes())):
            reason = complaint(room, name)
            if reason:
                found.append(f"{inside.as_posix()}:{line} {name}: {reason}")
    return found


def circles(package: Path) -> list[str]:
    """The first circle of modules that import each other, in order; empty when there is none."""
    files = {
        ".".join(("mg_milvus", *file.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): file
        for file in package.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        if module == "mg_milvus":  # its public names are imported when they are first used
            continue
        names = {name for _, name in imported(ast.parse(file.read_bytes()))}
        targets = {name if name in files else name.rpartition(".")[0] for name in names}
        graph[module] = (targets & files.keys()) - {module, "mg_milvus"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_go_downwards() -> None:
    assert violations(PACKAGE) == []


def test_no_two_modules_import_each_other() -> None:
    assert circles(PACKAGE) == []


def test_the_top_of_the_package_can_be_read_at_once() -> None:
    entries = [entry.name for entry in PACKAGE.iterdir() if entry.name not in {"__pycache__", "schemas"}]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def build(root: Path, files: dict[str, str]) -> Path:
    package = root / "mg_milvus"
    for name, text in files.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return package


def test_a_good_package_has_no_violations(tmp_path: Path) -> None:
    package = {
        "__init__.py": "from mg_milvus.index import ImageIndex\n",
        "__main__.py": "from mg_milvus.cli.app import main\n",
        "errors.py": "import json\n",
        "index.py": "from mg_milvus import ingest, __version__\nfrom mg_milvus.store.milvus import open_store\n",
        "ingest/run.py": "from mg_milvus.images.decode import read\nfrom mg_milvus.ingest.metrics import Counter\n",
        "ingest/metrics.py": "import time\n",
        "images/decode.py": "from mg_milvus.images.discover import walk\nfrom mg_milvus.errors import ImageError\n",
        "images/discover.py": "import os\n",
        "encoder/networks.py": "import torch.nn\nfrom torchvision import models\nfrom safetensors import torch\n",
        "store/milvus.py": "def connect():\n    import pymilvus\n",
        "cli/app.py": "import typer\nimport rich.console\n",
    }
    built = build(tmp_path, package)
    assert violations(built) == []
    assert circles(built) == []


def test_a_circle_is_found_wherever_its_imports_stand(tmp_path: Path) -> None:
    package = {
        "images/a.py": "from mg_milvus.images import b\n",
        "images/b.py": "def f():\n    from mg_milvus.images.c import g\n",
        "images/c.py": "if TYPE_CHECKING:\n    from mg_milvus.images.a import h\n",
        "images/d.py": "from mg_milvus.images import a\n",
    }
    found = circles(build(tmp_path, package))
    assert set(found) == {"mg_milvus.images.a", "mg_milvus.images.b", "mg_milvus.images.c"}


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (
            "codes.py",
            "from mg_milvus.schema.models import Schema",
            "codes.py:1 mg_milvus.schema.models.Schema: schema is above codes",
        ),
        ("records.py", "import mg_milvus.codes", "records.py:1 mg_milvus.codes: codes is beside records"),
        ("ingest/run.py", "from mg_milvus import index", "ingest/run.py:1 mg_milvus.index: index is above ingest"),
        ("store/rows.py", "import mg_milvus", "store/rows.py:1 mg_milvus: the package itself is above store"),
        (
            "store/rows.py",
            "from mg_milvus import ImageIndex",
            "store/rows.py:1 mg_milvus.ImageIndex: ImageIndex is above store",
        ),
        (
            "encoder/base.py",
            "def fuse():\n    from mg_milvus.store.base import Row",
            "encoder/base.py:2 mg_milvus.store.base.Row: store is beside encoder",
        ),
        (
            "errors.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mg_milvus.records import Hit",
            "errors.py:3 mg_milvus.records.Hit: records is above errors",
        ),
        (
            "search/fusion.py",
            "import importlib\nimportlib.import_module('mg_milvus.index')",
            "search/fusion.py:2 mg_milvus.index: index is above search",
        ),
        ("images/decode.py", "from . import discover", "images/decode.py:1 ..discover: relative import"),
        ("index.py", "def f():\n    import torch", "index.py:2 torch: torch is not at home in index"),
        (
            "doctor.py",
            "from safetensors import torch",
            "doctor.py:1 safetensors.torch: safetensors.torch is not at home in doctor",
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
        "Cluster", "ClusterImage", "Clusters", "Listing", "Conformance", "Feature", "conformance",
        "DuplicateGroup", "DuplicateReport", "Encoder", "Evaluation", "Explanation", "Failure", "Fused",
        "Fusion", "Granularity",
        "GroupMember", "Hit", "Hits",
        "ImageEmbeddingFunction", "ImageIndex", "IndexInfo", "IngestMetrics", "IngestReport", "Progress",
        "MilvusConfig", "MoveReport", "QueryOptions", "QueryTerm", "RelocateReport", "Schema", "StepReport", "Target",
        "Tls", "TrainReport",
        "TrainingConfiguration",
        "TransferReport", "TuneReport", "Verification", "__version__", "evaluate", "fuse", "load_encoder", "train",
            "tune",
    }  # fmt: skip
    assert sorted(mg_milvus.__all__) == sorted(error_names | others)
    assert [name for name in mg_milvus.__all__ if getattr(mg_milvus, name, None) is None] == []
    assert set(mg_milvus.__all__) <= set(dir(mg_milvus))
