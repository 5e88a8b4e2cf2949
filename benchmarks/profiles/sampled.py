"""A flame graph's figures: py-spy looks a hundred times a second at what a program does, and the stacks are summed.

A stack is a line ``outermost;…;innermost COUNT``, the folded form that flame graphs are drawn from.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FRAME = re.compile(r"^(?P<name>.*?) \((?P<file>[^()]*?)(:\d+)?\)$")
_VERSION = re.compile(r"(-[0-9a-f]{6,})?(\.cpython.*|\.so[.\d]*)?$")


def recorded(command: Sequence[str], out: Path | None = None) -> list[str] | None:
    """Folded stacks of a program that is run; None when py-spy is not there, which ``pip install py-spy`` mends."""
    tool = shutil.which("py-spy")
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        file = out or Path(scratch, "stacks")
        # Frames of compiled code, where py-spy can see them.
        for native in (["--native"], []):
            asked = [tool, "record", "--rate", "100", "--format", "raw", "--output", str(file), *native, "--", *command]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            if done.returncode == 0 and file.exists():
                return file.read_text(encoding="utf-8").splitlines()
        raise SystemExit(f"py-spy cannot record: {done.stderr.strip()}")


def by_package(stacks: Sequence[str]) -> dict[str, float]:
    """Package or library -> share of the samples in which it was innermost."""
    found: Counter[str] = Counter()
    for stack in stacks:
        frames, count = _frames(stack)
        found[next((package(frame) for frame in reversed(frames) if package(frame)), "?")] += count
    return _shares(found)


def by_function(stacks: Sequence[str], within: str) -> dict[str, float]:
    """Function of a package -> share of the samples in which it was on the stack."""
    found: Counter[str] = Counter()
    for stack in stacks:
        frames, count = _frames(stack)
        own = {re.sub(r":\d+\)$", ")", frame) for frame in frames if package(frame) == within}
        found.update(dict.fromkeys(own, count))
    whole = sum(_frames(stack)[1] for stack in stacks)
    return {name: count / whole for name, count in found.most_common()}


def package(frame: str) -> str:
    """Whose a frame is: ``torch`` of ``forward (torch/nn/modules/conv.py:560)``; empty where that is not told."""
    matched = _FRAME.match(frame)
    if matched is None or frame.startswith(("0x", "thread (")):
        return ""
    file = matched["file"]
    if file.startswith("<frozen"):
        return "importing"
    top = file.split("/")[0]
    return _VERSION.sub("", top.removesuffix(".py"))


def _frames(stack: str) -> tuple[list[str], int]:
    text, _, count = stack.rpartition(" ")
    return text.split(";"), int(count)


def _shares(found: Mapping[str, int]) -> dict[str, float]:
    whole = sum(found.values())
    return {name: count / whole for name, count in sorted(found.items(), key=lambda item: -item[1])}
