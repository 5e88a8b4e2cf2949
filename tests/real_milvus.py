"""A real Milvus for tests: the standalone server 2.3.5 that the package ``milvus`` carries, on ports of its own.

The package is installed into pytest's cache folder, apart from everything else, once. The server needs Linux on x86_64,
some 300 MB there and 600 MB of memory; it starts in three seconds on a quiet machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.servers import free_port
from tests.waiting import PATIENCE, wait_until

PACKAGE = "milvus==2.3.5"
TOKEN = "root:Milvus"
PORTS = (
    "etcd", "root_coord", "proxy", "proxy_internal", "query_coord", "query_node", "index_coord", "index_node",
    "data_coord", "data_node",
)  # fmt: skip

# The package's own starter takes no notice when its server is killed, and uses two fixed ports.
_PREPARE = """
import sys, milvus
programs, folder, *ports = sys.argv[1:]
milvus._initialize_data_files(programs)
configuration = milvus.MilvusServerConfig(data_dir=folder)
configuration.resolve_storage()
configuration.set("authorization_enabled", True)
for setting in ports:
    name, _, port = setting.partition("=")
    configuration.set(name, int(port))
configuration.write_config()
"""
_ETCD = """
listen-client-urls: http://127.0.0.1:{client}
advertise-client-urls: http://127.0.0.1:{client}
listen-peer-urls: http://127.0.0.1:{peer}
initial-advertise-peer-urls: http://127.0.0.1:{peer}
initial-cluster: default=http://127.0.0.1:{peer}
"""


class NotHereError(Exception):
    """There is no real server on this machine, with the reason."""


def install(folder: Path) -> Path:
    """The package, in a folder of its own; from there when it is there already."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise NotHereError(f"{PACKAGE} runs on Linux x86_64, this is {platform.system()} {platform.machine()}")
    packages = folder / "packages"
    if not (packages / "complete").exists():
        shutil.rmtree(packages, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        done = subprocess.run([*pip, "--target", packages, PACKAGE], capture_output=True, text=True)
        if done.returncode:
            raise NotHereError(f"pip cannot install {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
        (packages / "complete").touch()
    return packages


def _end_with_the_tests() -> None:
    """Have the kernel kill this process when the tests are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class RealMilvus:
    """The server, which can be stopped, killed and started again; it asks for ``TOKEN``."""

    def __init__(self, cache: Path, folder: Path) -> None:
        packages = install(cache)
        self._folder, self._programs = folder, cache / "unpacked" / "bin"
        ports = {name: free_port() for name in PORTS}
        client, peer, self._health = (free_port() for _ in range(3))
        self.uri = f"http://127.0.0.1:{ports['proxy']}"
        subprocess.run(
            [
                sys.executable,
                "-c",
                _PREPARE,
                self._programs.parent,
                folder,
                *(f"{n}_port={p}" for n, p in ports.items()),
            ],
            env=os.environ | {"PYTHONPATH": str(packages)},
            check=True,
        )
        (folder / "etcd.yaml").write_text(_ETCD.format(client=client, peer=peer))
        self._was_up = False
        self.start()

    def start(self) -> None:
        """Start it; wait until it is healthy. One whose predecessor was killed may end at once: it starts again."""
        self._launch()

        def is_up() -> bool:
            if not self.running:
                if not self._was_up:
                    raise NotHereError(f"Milvus does not start, it says: {self._last_words()}")
                self._launch()
            return self._healthy()

        try:
            wait_until(is_up, "the Milvus server is healthy", pause=0.1)
        except BaseException:
            self.kill()
            raise
        self._was_up = True

    def _launch(self) -> None:
        with (self._folder / "logs" / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "milvus", "run", "standalone"],
                cwd=self._folder,
                env=os.environ
                | {
                    "DEPLOY_MODE": "STANDALONE",
                    "METRICS_PORT": str(self._health),
                    "MILVUS_RUN_DIR": str(self._folder / "run"),
                    "ETCD_CONFIG_PATH": str(self._folder / "etcd.yaml"),
                    "LD_LIBRARY_PATH": str(self._programs),
                    # How long a server that was killed keeps its successor waiting.
                    "COMMON_SESSION_TTL": "5",
                    "COMMON_GRACEFULSTOPTIMEOUT": "2",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_the_tests,
            )

    def stop(self) -> None:
        """End it in good order."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _healthy(self) -> bool:
        where = f"http://127.0.0.1:{self._health}/healthz"
        with contextlib.suppress(OSError), urllib.request.urlopen(where, timeout=30) as answer:
            return bool(answer.read() == b"OK")
        return False

    def _last_words(self) -> str:
        return (self._folder / "logs" / "output.log").read_text(errors="replace")[-500:]
