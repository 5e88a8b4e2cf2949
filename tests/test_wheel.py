"""The wheel holds everything, and what it installs runs outside the checkout."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, with nothing of the checkout in its environment."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MGM_", "VIRTUAL_ENV"))
    }
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel; the heavy dependencies are borrowed from the tests' own.

    A line in a .pth file puts a folder on the path without reading the .pth files in it, so the checkout's editable
    installation is not borrowed with the rest. The wheel comes first, so that pip finds nothing installed already.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return folder / "bin"


def test_the_wheel_holds_what_the_program_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {f"mg_milvus/schemas/{file.name}" for file in (ROOT / "schemas").iterdir()}
    assert {f"mg_milvus/schemas/{name}.yaml" for name in ("default", "compact", "precise", "server")} <= expected
    assert "mg_milvus/schemas/mgm.schema.json" in expected
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mg_milvus").rglob("*") if path.is_file()}
    expected |= {name for name in code if "__pycache__" not in name}
    assert expected - names == set()
    assert any(name.startswith("mg_milvus/encoder/weights/") and name.endswith(".safetensors") for name in names)
    assert "mg_milvus/py.typed" in names
    assert any(name.endswith("/NOTICE") for name in names)
    assert any(name.endswith(".jinja") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/", "docker/")) for name in names)


def test_the_wheel_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 13e6


def test_mgm_runs_outside_the_checkout(environment: Path, tmp_path: Path) -> None:
    python, mgm = environment / "python", environment / "mgm"
    where = run(python, "-c", "import mg_milvus; print(mg_milvus.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment.parent)

    images = tmp_path / "images"
    images.mkdir()
    for name, colour in {"red": "#c02020", "green": "#20c020", "blue": "#2020c0"}.items():
        Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(images / f"{name}-grey.jpg")
        Image.new("RGB", (96, 64), colour).save(images / f"{name}.jpg")

    assert "compact" in run(mgm, "schema", "presets", cwd=tmp_path)
    run(mgm, "ingest", "images", "--uri", "wheel.db", cwd=tmp_path)
    lines = run(mgm, "query", "images/red.jpg", "--uri", "wheel.db", "-k", "3", "--json", cwd=tmp_path).splitlines()
    hits = [json.loads(line) for line in lines]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert set(hits[0]["distances"].values()) == {0}, "an image that is indexed is found at distance 0"
    assert Path(hits[0]["path"]).name in {"red.jpg", "green.jpg", "blue.jpg"}
