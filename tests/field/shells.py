"""Commands as an unusual shell starts them, and a small index for them."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from tests.forked import MGM, program
from tests.images import save_image
from tests.waiting import PATIENCE

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("MGM_")}


def shell(
    words: list[str | Path], cwd: Path, redirection: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``mgm`` by a shell, with a redirection as one writes it there, such as ``>&-``.

    It is started where Python finds something unusual at its start: with a redirection, or an environment.
    """
    mgm = program() if (redirection, environment) == ("", None) else MGM
    line = f"exec {shlex.join(map(str, [mgm, *words]))} {redirection}"
    environment = PLAIN if environment is None else environment
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        timeout=PATIENCE,
    )  # fmt: skip


def make_index(folder: Path, names: tuple[str | bytes, ...] = (), count: int = 4) -> Path:
    """A folder with ``photos/`` and their index ``mgm.db``; ``names`` are copies of photos/0.jpg."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for seed in range(count):
        save_image(photos / f"{seed}.jpg", seed)
    for name in names:
        (photos / os.fsdecode(name)).write_bytes((photos / "0.jpg").read_bytes())
    done = shell(["ingest", "photos"], folder)
    assert done.returncode == 0, done.stderr
    return folder


def is_calm(done: subprocess.CompletedProcess[bytes]) -> bool:
    """Whether a command ended without a traceback and without calling anything a bug."""
    said = done.stdout + done.stderr
    return done.returncode >= 0 and not any(word in said for word in (b"Traceback", b"a bug in", b"Exception ignored"))
