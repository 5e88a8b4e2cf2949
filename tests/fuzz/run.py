"""Decode mutated images one after the other in this process and print what became of them, a JSON line an image.

``python -m tests.fuzz.run JPEG 0 300``. The parent reads the last line to learn which image killed the process.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

from mg_milvus.errors import ImageError
from mg_milvus.images.decode import decode
from tests.fuzz.mutate import mutated

MAX_PIXELS = 2_000_000
CPU_SECONDS = 20
"""The kernel ends the process when one image takes more."""
ADDRESS_SPACE = 4 << 30


def peak() -> int:
    """The most memory resident since ``forget_peak``, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def forget_peak() -> int:
    """Begin a new measurement of the peak; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def outcome(data: bytes, least: int | None) -> str:
    """``decoded``, ``refused``, or what went wrong."""
    try:
        decoded = decode(data, least=least, max_pixels=MAX_PIXELS)
    except ImageError as error:
        message = str(error)
        return "refused" if message and "\n" not in message else f"its message is not one line: {message!r}"
    except BaseException as error:  # noqa: BLE001 - the point of it all
        return f"raised {type(error).__name__}: {error}"
    image = decoded.image
    image.tobytes()
    if image.mode != "RGB" or not 0 < decoded.width * decoded.height <= MAX_PIXELS:
        return f"decoded as {image.mode}, {decoded.width}x{decoded.height}"
    return "decoded"


def main(kind: str, first: int, last: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    mutated(kind, first)
    for number in range(first, last):
        data = mutated(kind, number)
        print(json.dumps({"begins": number}), flush=True)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        before, started = forget_peak(), time.process_time()
        became = outcome(data, None if number % 2 else 8)
        seconds, grown = time.process_time() - started, peak() - before
        print(json.dumps({"number": number, "outcome": became, "seconds": seconds, "grown": grown}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
