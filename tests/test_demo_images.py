"""The demo's images: real files, made the same way every time, with queries that are not among them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "demo_images.py"


def make(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_samples_are_images_and_queries_are_held_out(tmp_path: Path) -> None:
    assert make(tmp_path / "a").returncode == 0
    assert make(tmp_path / "b").returncode == 0
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    originals = [name for name in first if name.startswith("images/originals/")]
    edited = [name for name in first if name.startswith("images/edited/")]
    queries = [name for name in first if name.startswith("queries/")]
    assert len(originals) >= 20
    assert len(edited) == 8 * len(originals)
    assert queries == ["queries/category.jpg", "queries/instance.jpg", "queries/object.jpg"]
    assert len(first) == len(originals) + len(edited) + len(queries)
    assert len(set(first.values())) == len(first), "no image is there twice, least of all a query"
    for name in first:
        with Image.open(tmp_path / "a" / name) as image:
            image.load()
            assert min(image.size) >= 50, name


def test_own_queries_are_cut_from_readable_images(tmp_path: Path) -> None:
    own = tmp_path / "my images"
    own.mkdir()
    for number in range(6):
        Image.new("RGB", (100, 50), (40 * number, 0, 0)).save(own / f"{number}.png")
    (own / "2.png").write_bytes(b"not an image")
    (own / "notes.txt").write_text("neither is this")
    before = digests(own)
    assert make(tmp_path / "out", "--own", own).returncode == 0
    reds = []
    for profile in ("category", "object", "instance"):
        with Image.open(tmp_path / "out" / "queries" / f"{profile}.jpg") as image:
            assert image.size == (77, 39), "0.6 of the area"
            reds.append(image.getpixel((5, 5))[0])
    assert [abs(red - 40 * number) <= 3 for red, number in zip(reds, (0, 3, 4), strict=True)] == [True] * 3
    assert digests(own) == before


def test_a_folder_without_images_is_refused_in_a_sentence(tmp_path: Path) -> None:
    result = make(tmp_path / "out", "--own", tmp_path)
    assert (result.returncode, result.stderr) == (
        1,
        f"no readable image in {tmp_path}; expected a folder with .jpg, .png or .webp files\n",
    )
