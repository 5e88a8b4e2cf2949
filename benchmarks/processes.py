"""What a process takes of the machine, as Linux tells it: memory, descriptors, threads. And the bytes of a file."""

from __future__ import annotations

import os
import re
from pathlib import Path


def engine_pid(file: Path) -> int:
    """The Milvus Lite process that has a file open; its client, here or elsewhere, is another one."""
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(file.resolve()) in command and Path(os.fsdecode(command[0])).name == "milvus":
            return int(process.name)
    raise RuntimeError(f"no Milvus Lite has {file} open")


def memory(pid: int | None = None, what: str = "VmRSS") -> float:
    """MB that a process holds: ``VmRSS`` now, ``VmHWM`` at most, ``RssAnon`` its own. Default: this process."""
    status = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+)", status, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"process {pid} says no {what}")
    return int(found[1]) / 1024


def descriptors(pid: int | None = None) -> int:
    """Open files and connections. Default: of this process, less the one that this takes."""
    return len(os.listdir(f"/proc/{pid or os.getpid()}/fd")) - (pid is None)


def threads(pid: int | None = None) -> int:
    """Threads that the kernel knows. Default: of this process."""
    return len(os.listdir(f"/proc/{pid or os.getpid()}/task"))


def file_size(file: Path) -> int:
    """Bytes of a Milvus Lite file with its journals."""
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*") if part.is_file())
