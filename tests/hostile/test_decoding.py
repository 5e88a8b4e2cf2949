"""Small files that would take much memory or time: computed from the header, limited, shared out among threads."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from mg_milvus.errors import ImageError
from mg_milvus.images import decode as decoding
from mg_milvus.images import files
from mg_milvus.images.decode import BYTES_A_PIXEL, decode
from mg_milvus.images.files import MemoryBudget
from mg_milvus.index import ImageIndex
from tests.images import encoded
from tests.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

"""Seconds in which what takes milliseconds is done on any machine."""


def grey(side: int) -> Image.Image:
    return Image.linear_gradient("L").resize((side, side))


def colour(side: int) -> Image.Image:
    return Image.merge("RGB", [grey(side), grey(side).rotate(90), grey(side).rotate(180)])


def clear(side: int) -> Image.Image:
    return Image.merge("RGBA", [*colour(side).split(), grey(side)])


def real(side: int) -> Image.Image:
    return Image.fromarray(np.asarray(grey(side), np.float32) * 100 - 50)


def sixteen(side: int) -> Image.Image:
    return Image.fromarray(np.asarray(grey(side)).astype(np.uint16) * 200)


def plain(side: int) -> bytes:
    return b"P3 %d %d 255\n" % (side, side) + b"1 " * (3 * side * side)


def one_strip(image: Image.Image) -> bytes:
    return encoded(image, "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: image.height})


MADE: dict[str, tuple[Callable[[int], bytes], int]] = {
    "JPEG": (lambda side: encoded(colour(side), "JPEG"), 8),
    "JPEG progressive": (lambda side: encoded(colour(side), "JPEG", progressive=True, subsampling=0), 4 + 2 * 3),
    "JPEG progressive 4:2:0": (lambda side: encoded(colour(side), "JPEG", progressive=True, subsampling=2), 8),
    "JPEG CMYK progressive": (lambda side: encoded(colour(side).convert("CMYK"), "JPEG", progressive=True), 4 + 2 * 4),
    "PNG grey": (lambda side: encoded(grey(side), "PNG"), 8),
    "PNG RGBA": (lambda side: encoded(clear(side), "PNG"), 8),
    "PNG 16 bits": (lambda side: encoded(sixteen(side), "PNG"), 8),
    "WebP": (lambda side: encoded(colour(side), "WEBP"), 4 + 12),
    "WebP RGBA": (lambda side: encoded(clear(side), "WEBP"), 4 + 12),
    "AVIF": (lambda side: encoded(clear(side), "AVIF", speed=10), 4 + 12),
    "GIF": (lambda side: encoded(grey(side), "GIF"), 8),
    "BMP": (lambda side: encoded(colour(side), "BMP"), 8),
    "PPM plain": (plain, 4 + 2 * 3),
    "TIFF": (lambda side: encoded(colour(side), "TIFF"), 8),
    "TIFF float": (lambda side: encoded(real(side), "TIFF"), 4 + 1 + 4),
    "TIFF float, one strip": (lambda side: one_strip(real(side)), 4 + 1 + 4),
    "TIFF RGB, one strip": (lambda side: one_strip(colour(side)), 8),
    "TIFF YCbCr, one strip": (lambda side: one_strip(colour(side).convert("YCbCr")), 4 + 3 + 4),
}
"""Kind -> a square image of it, and the bytes a pixel that decoding takes: worked out by hand."""


def needed(data: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    """What ``decode`` reckons with."""
    told: list[int] = []
    monkeypatch.setattr(decoding, "decoders", budget := MemoryBudget(1 << 40))
    monkeypatch.setattr(budget, "_wait_for", told.append)
    decode(data)
    return told[0]


@pytest.mark.parametrize("kind", MADE)
def test_bytes_a_pixel_by_the_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, bytes_a_pixel = MADE[kind]
    data = make(256)
    length = len(data) if kind.startswith(("WebP", "AVIF")) else 0
    assert needed(data, monkeypatch) == 256 * 256 * bytes_a_pixel + length


MEASURE = """
import json, sys
from mg_milvus.images import decode as decoding
from tests.hostile.test_decoding import MADE

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) << 10

told, real = [], decoding.memory_needed
decoding.memory_needed = lambda *of: told.append(real(*of)) or told[-1]
found = {}
for kind, (make, _) in MADE.items():
    data = make(1600)
    decoding.decode(make(64))
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    decoding.decode(data)
    found[kind] = status("VmHWM") - before, told[-1]
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads /proc")
def test_decoding_takes_no_more_memory_than_reckoned_with() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process reset its peak of memory")
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert run.returncode == 0, run.stderr
    for kind, (peak, told) in json.loads(run.stdout).items():
        assert peak < told * 1.1 + (8 << 20), kind  # bands of rows, and the allocator's own


def test_more_than_twelve_bytes_for_each_allowed_pixel_are_refused() -> None:
    data = encoded(clear(300), "WEBP")
    count = 16 * 90_000 + len(data)
    assert decode(data, max_pixels=-(-count // BYTES_A_PIXEL)).width == 300
    with pytest.raises(
        ImageError, match=rf"^takes about {count} bytes to decode \(300x300, WEBP of mode RGBA\), more than 12 for"
    ):
        decode(data, max_pixels=(count - 1) // BYTES_A_PIXEL)


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"", following: int = 0) -> bytes:
    """A TIFF of one directory at byte 8; an entry is a tag, a type, a count and a value or its place."""
    packed = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + packed + struct.pack("<L", following) + tail


def strips(count: int) -> bytes:
    """An image of one pixel a row, in so many strips."""
    place = 8 + 2 + 9 * 12 + 4
    return tiff(
        [(256, 4, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, count, place),
         (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, count, place + 4 * count)],
        struct.pack("<L", 8) * count + struct.pack("<L", 1) * count,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (strips(2_000_000), "has 2000000 strips or tiles, at most 65536 are read"),
        (tiff([(324, 4, 65_537, 8)]), "has 65537 strips or tiles, at most 65536 are read"),
        (tiff([(320, 3, 262_145, 8)]), "has 262145 numbers in its tag 320, at most 262144 are read"),
        (tiff([(1000 + number, 4, 1, 0) for number in range(5000)]), "has 5000 tags, at most 4096 are read"),
        (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**40) + bytes(100_000), f"has {2**40} tags"),
        (b"MM\0+\0\x08\0\0" + struct.pack(">QQHHQQ", 16, 1, 273, 16, 2**40, 0), f"has {2**40} strips or tiles"),
        (b"MM\0*" + struct.pack(">LHHHLL", 8, 1, 279, 3, 70_000, 0), "has 70000 strips or tiles"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_tiffs_of_too_many_pieces_are_refused_at_once(data: bytes, reason: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert str(caught.value).startswith(reason)
    assert time.perf_counter() - started < 6


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def png_with(chunks: bytes) -> bytes:
    data = encoded(colour(8), "PNG")
    place = data.index(b"IDAT") - 4
    return data[:place] + chunks + data[place:]


def animated(form: str, frames: int) -> bytes:
    buffer = io.BytesIO()
    pages = [Image.new("RGB", (8, 8), (number % 256, number // 256, 0)) for number in range(frames)]
    pages[0].save(buffer, form, save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def looping() -> bytes:
    """A TIFF whose directory is followed by itself."""
    data = strips(1)
    place = 8 + 2 + 9 * 12
    return data[:place] + struct.pack("<L", 8) + data[place + 4 :]


def shared_values() -> bytes:
    """Four thousand tags that all name the same megabyte."""
    return tiff([(1000 + number, 7, 1 << 20, 8) for number in range(4000)], bytes(1 << 20))


ZEROS = zlib.compress(bytes(1_000_000))
SIBLINGS: dict[str, Callable[[], bytes]] = {
    "GIF of 2,000 frames": lambda: animated("GIF", 2000),
    "WebP of 1,000 frames": lambda: animated("WEBP", 1000),
    "APNG of 500 frames": lambda: animated("PNG", 500),
    "TIFF of 500 pages": lambda: animated("TIFF", 500),
    "MPO of 100 images": lambda: animated("MPO", 100),
    "TIFF that is followed by itself": looping,
    "TIFF whose tags share a megabyte": shared_values,
    "PNG of 200 megabytes of text": lambda: png_with(chunk(b"zTXt", b"a\0\0" + ZEROS) * 200),
    "PNG of 100,000 empty chunks": lambda: png_with(chunk(b"abCd", b"") * 100_000),
    "PNG with a colour profile of a megabyte": lambda: png_with(chunk(b"iCCP", b"a\0\0" + ZEROS)),
    "PNG with EXIF of 60,000 tags": lambda: png_with(
        chunk(b"eXIf", b"II*\0" + struct.pack("<LH", 8, 60_000) + struct.pack("<HHLL", 1, 7, 700_000, 8) * 60_000)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIBLINGS)
def test_what_is_folded_into_a_small_file_takes_no_time(name: str) -> None:
    data = SIBLINGS[name]()
    started = time.perf_counter()
    try:
        reason = f"{decode(data).width} pixels wide"
    except ImageError as error:
        reason = str(error)
    assert reason.startswith(("8 pixels wide", "1 pixels wide", "is truncated or damaged: "))
    assert time.perf_counter() - started < 60


def test_the_image_of_a_multi_image_file_is_its_first() -> None:
    assert decode(animated("MPO", 3)).image.getpixel((0, 0)) == (0, 0, 0)


class Crowd:
    """Threads that all want memory: how many bytes they held together, at most."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget, self.now, self.most, self.lock = budget, 0, 0, threading.Lock()

    def work(self, count: int) -> int:
        with self.budget.held(count):
            with self.lock:
                self.now += count
                self.most = max(self.most, self.now)
            time.sleep(0.001)
            with self.lock:
                self.now -= count
        return count


def test_threads_together_hold_no_more_than_the_budget() -> None:
    crowd = Crowd(MemoryBudget(100))
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(crowd.work, [30, 70, 5, 100] * 50, timeout=PATIENCE)) == 205 * 50
    assert 70 <= crowd.most <= 100


def test_one_that_is_larger_than_the_budget_runs_alone() -> None:
    crowd = Crowd(MemoryBudget(100))
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(crowd.work, [30, 500] * 50, timeout=PATIENCE)) == 530 * 50
    assert crowd.most == 500


def test_a_thread_does_not_wait_for_itself_and_gives_back_after_errors() -> None:
    budget = MemoryBudget(100)

    def nested() -> str:
        with pytest.raises(ZeroDivisionError), budget.held(80), budget.held(80):
            1 / 0  # noqa: B018
        with budget.held(100):
            return "done"

    with ThreadPoolExecutor(4) as pool:
        assert [made.result(PATIENCE) for made in [pool.submit(nested) for _ in range(20)]] == ["done"] * 20


def test_those_who_wait_come_in_their_order() -> None:
    """A large image is not passed by small ones for ever."""
    budget, order, started = MemoryBudget(100), [], []

    def work(count: int) -> None:
        with budget.held(count):
            order.append(count)

    with budget.held(60):
        for count in (90, 10, 20):
            thread = threading.Thread(target=work, args=(count,))
            thread.start()
            started.append(thread)
            wait_until(lambda: len(budget._waiting) == len(started), "every thread waits for its share", pause=0.001)
        assert order == []
    for thread in started:
        thread.join(PATIENCE)
    assert (order[0], sorted(order[1:])) == (90, [10, 20])


def test_an_ingest_of_large_images_holds_few_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share is held until the image is made small, not only while it is decoded."""
    for number in range(12):
        clear(200 + number).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(decoding, "decoders", MemoryBudget(3 * 8 * 220 * 220))  # of three such images
    lock, now, most = threading.Lock(), [], []
    real: Any = None

    def prepare(encoder: Any, image: Image.Image) -> Any:
        with lock:
            now.append(image)
            most.append(len(now))
        time.sleep(0.002)
        made = real(encoder, image)
        with lock:
            now.pop()
        return made

    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path / "0.png")
        kind = type(index.session.encoder)
        real = kind.prepare
        monkeypatch.setattr(kind, "prepare", prepare)
        assert index.ingest(tmp_path, workers=8).added == 11
    assert 1 <= max(most) <= 3


def test_large_files_are_not_all_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(clear(100), "PNG")
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for path in paths:
        path.write_bytes(data)
    monkeypatch.setattr(files, "reading", MemoryBudget(2 * len(data)))
    lock, now, most = threading.Lock(), [], []

    def read(path: Path) -> None:
        with files.content_of(path) as content:
            with lock:
                now.append(content)
                most.append(len(now))
            time.sleep(0.002)
            with lock:
                now.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, paths, timeout=PATIENCE))
    assert 1 <= max(most) <= 2
