"""Thousands of spoiled images through ``decode``, in processes whose end, time and memory are watched.

``MGM_FUZZ=20000 pytest tests/fuzz/test_fuzz_images.py -s`` decodes as many of each format and prints the results.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest

from mg_milvus.errors import ImageError
from mg_milvus.images.decode import decode
from tests.fuzz.mutate import mutated
from tests.fuzz.run import MAX_PIXELS
from tests.fuzz.seeds import FORMATS, MORE_FORMATS, png_chunk, seeds, sound
from tests.images import encoded, image

COUNT = int(os.environ.get("MGM_FUZZ", "250"))
SECONDS = 5.0
"""CPU time of one image, also on a slow machine."""
BYTES = 12 * MAX_PIXELS + (64 << 20)
"""Memory of one image above what the process had: three copies of 4 bytes a pixel, and room for its file."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux tells it")


def fuzzed(kind: str, count: int, folder: Path) -> list[dict[str, object]]:
    """One record an image; the process that an image kills is followed by another that goes on behind it."""
    records: list[dict[str, object]] = []
    first = 0
    while first < count:
        with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
            command = [sys.executable, "-m", "tests.fuzz.run", kind, str(first), str(count)]
            code = subprocess.run(
                command, cwd=Path(__file__).parents[2], stdout=out, stderr=err, timeout=120 + count, check=False
            ).returncode  # fmt: skip
            out.seek(0)
            lines = [json.loads(line) for line in out]
            err.seek(0)
            said = err.read()
        records += [line for line in lines if "outcome" in line]
        if code == 0:
            if said:
                records.append({"number": first, "outcome": f"wrote to standard error: {said[:500]}"})
            break
        assert lines, said
        died = lines[-1].get("begins", lines[-1].get("number"))
        records.append({"number": died, "outcome": f"killed the process: exit code {code}: {said[-500:]}"})
        first = died + 1
    return records


@linux
@pytest.mark.parametrize("kind", [*FORMATS, *MORE_FORMATS])
def test_spoiled_images_are_decoded_or_refused(kind: str, tmp_path: Path) -> None:
    records = fuzzed(kind, COUNT, tmp_path)
    outcomes = Counter(record["outcome"] for record in records)
    measured = [record for record in records if "seconds" in record]
    slowest = max(measured, key=lambda record: record["seconds"])
    largest = max(measured, key=lambda record: record["grown"])
    print(
        f"\n{kind}: {dict(outcomes)}, slowest {slowest['seconds']:.2f} s (number {slowest['number']}), "
        f"most memory {largest['grown'] / 2**20:.0f} MiB (number {largest['number']})"
    )
    odd = [record for record in records if record["outcome"] not in {"decoded", "refused"}]
    assert odd[:3] == []
    assert len(records) == COUNT
    assert min(outcomes["decoded"], outcomes["refused"]) > COUNT / 20  # or the mutations test nothing
    assert slowest["seconds"] < SECONDS, slowest
    assert largest["grown"] < BYTES, largest


@pytest.mark.parametrize("kind", [*FORMATS, *MORE_FORMATS])
def test_the_mutations_start_from_sound_images_and_can_be_repeated(kind: str) -> None:
    assert all(map(sound, seeds(kind)))
    made = [mutated(kind, number) for number in range(100)]
    assert made == [mutated(kind, number) for number in range(100)]
    assert len(set(made)) > 95


# Small files that would take minutes: with Pillow 12, 4 MB of the last kind took 53 s


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def many_scans(count: int) -> bytes:
    """A progressive JPEG of one scan more than ``count``; each is as long as the ones that it repeats."""
    plain = encoded(image(1).convert("L"), "JPEG", progressive=True)
    last = plain.rindex(b"\xff\xda")
    return plain[:-2] + plain[last:-2] * count + plain[-2:]


JPEG, PNG = seeds("JPEG")[0], seeds("PNG")[-1]
BOMBS = {
    "scans": (many_scans(200), "more than 100 scans or 5000 segments"),
    "scans, with ends between that are none": (
        many_scans(200).replace(b"\xff\xda", segment(0xFE, b"\xff\xd9") + b"\xff\xda"), "more than 100 scans"
    ),
    "segments": (JPEG[:2] + segment(0xE1, b"Exif\0\0x") * 6000 + JPEG[2:], "more than 100 scans or 5000 segments"),
    "filling": (JPEG[:2] + b"\xff" * 100_000 + JPEG[2:], "bytes between its segments, at most 65536"),
    "profiles": (PNG[:33] + png_chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(1000))) * 20 + PNG[33:], "has 20 colour"),
    "comments": (b"P3 1000 1000 255\n" + b"#\n" * 2000, "has 2000 comments, at most 1000 are read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused(kind: str) -> None:
    data, message = BOMBS[kind]
    with pytest.raises(ImageError, match=message):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        many_scans(20),
        JPEG[:2] + segment(0xE1, b"Exif\0\0" + b"\xff\xda" * 3000) + segment(0xE2, b"\xff" * 65_533) * 40 + JPEG[2:],
        JPEG + JPEG[2:] * 300,  # what follows the end of the image does not count
        encoded(image(1, (400, 300)), "JPEG", restart_marker_blocks=1, quality=95),  # 950 restarts
        PNG[:33] + png_chunk(b"tEXt", b"k\0" + b"#" * 5000) + PNG[33:],
        b"P3 1 1 255\n" + b"# a comment\n" * 20 + b"1 2 3\n",
    ],
)
def test_what_only_looks_like_a_bomb_is_decoded(data: bytes) -> None:
    assert decode(data).image.mode == "RGB"
