"""Programs that mgm starts run no code of a data folder, and get none of the secrets of who started them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mg_milvus.config import MilvusConfig
from mg_milvus.store import lite, lite_server
from mg_milvus.store.milvus import open_store
from tests.conftest import make_photos
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

MGM = Path(sysconfig.get_path("scripts")) / "mgm"
COMPILER = shutil.which("cc") or shutil.which("gcc")
SECRETS = {
    "MGM_TOKEN": "a-secret-of-mgm",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-a-cloud",
    "GOOGLE_APPLICATION_CREDENTIALS": "/a/secret/file",
    "AZURE_STORAGE_KEY": "a-secret-of-another",
    "http_proxy": "http://user:a-secret@127.0.0.1:9",
    "no_proxy": "127.0.0.1",
    "PYTHONWARNINGS": "ignore",
    "A_NAME_OF_TOMORROW": "a-secret-of-tomorrow",
}
NO_PROC = "reads /proc, which Linux has"

LIBRARY = """
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void run(void) {
    char program[4096];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) length = 0;
    program[length] = '\\n';
    int marker = open("MARKER", O_WRONLY | O_CREAT | O_APPEND, 0600);
    write(marker, program, length + 1);
    close(marker);
}
"""
VERSIONS = "".join(f"GLIBC_{version} {{}};\n" for version in ("2.2.5", "2.3.3", "2.3.4", "2.17", "2.34"))
PYTHON_MODULES = ("mg_milvus", "grpc", "pymilvus", "milvus_lite", "logging", "json", "sitecustomize")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Where foreign code writes the programs that run it."""
    return tmp_path / "foreign-code-ran"


@pytest.fixture
def folder(tmp_path: Path, marker: Path) -> Iterator[Path]:
    """A data folder with a library that the engine needs, and modules that Python programs need, of a stranger's."""
    if sys.platform != "linux" or COMPILER is None:
        pytest.skip("builds a shared library, which needs Linux and a C compiler")
    folder = tmp_path / "data"
    folder.mkdir()
    source, versions = tmp_path / "library.c", tmp_path / "versions"
    source.write_text(LIBRARY.replace("MARKER", str(marker)))
    versions.write_text(VERSIONS)
    for name in ("libdl.so.2", "librt.so.1"):
        subprocess.run(
            [COMPILER, "-shared", "-fPIC", "-w", f"-Wl,-soname,{name},--version-script={versions}", source,
             "-o", folder / name], check=True, timeout=PATIENCE,
        )  # fmt: skip
    for name in PYTHON_MODULES:
        (folder / f"{name}.py").write_text(f"import sys\nopen({str(marker)!r}, 'a').write('{name}\\n')\n")
    yield folder
    for left in folder.glob("*.db"):
        lite_server.down(left)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"LD_LIBRARY_PATH", "PYTHONPATH"}}
    return kept | SECRETS | more


def mgm(*arguments: str, cwd: Path, env: dict[str, str], code: int = 0) -> None:
    done = subprocess.run(
        [MGM, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == code, done.stderr


def ran(marker: Path) -> set[str]:
    """The programs that ran foreign code."""
    return {Path(line).name for line in marker.read_text().splitlines()} if marker.exists() else set()


def test_the_library_is_one_that_the_engine_would_load(folder: Path, marker: Path) -> None:
    """Else the tests below would prove nothing."""
    subprocess.run(
        [lite.program()], cwd=folder, env={"LD_LIBRARY_PATH": f"{lite.program().parent}:"}, timeout=PATIENCE,
        check=False, capture_output=True,
    )  # fmt: skip
    assert ran(marker) == {"milvus"}


@pytest.mark.parametrize("paths", [None, "", ":", "/nowhere::", "."], ids=["unset", "empty", "colon", "gap", "dot"])
def test_no_code_of_a_data_folder_is_run(folder: Path, marker: Path, paths: str | None) -> None:
    env = environment(**({} if paths is None else {"LD_LIBRARY_PATH": paths}))
    if paths is None:  # all commands start the engine in the same two ways
        make_photos(folder, per_kind=1)
        mgm("ingest", ".", cwd=folder, env=env)
    empty = 0 if paths is None else 1
    mgm("info", cwd=folder, env=env, code=empty)
    mgm("up", "--port", "0", cwd=folder, env=env)
    mgm("info", cwd=folder, env=env, code=empty)
    mgm("down", cwd=folder, env=env)
    # With an empty part in the path the loader of mgm's own Python, which mgm cannot help, may have looked here first.
    assert not ran(marker) - ({Path(sys.executable).resolve().name} if paths else set())


@pytest.mark.skipif(sys.platform != "linux", reason=NO_PROC)
def test_started_programs_get_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    shared, own = tmp_path / "shared.db", tmp_path / "own.db"
    running = lite_server.up(shared, 0)[0]
    store = open_store(MilvusConfig(str(own), collection="images"))
    try:
        found = {pid: program for pid, program in _programs().items() if str(tmp_path) in program}
        assert running.pid in found
        assert len(found) == 3, "the daemon, its engine, and the one of this process"
        for pid, program in found.items():
            given = Path(f"/proc/{pid}/environ").read_text().split("\0")
            names = {name for name, _, _ in (each.partition("=") for each in given)}
            assert not names & SECRETS.keys(), program
            assert not [value for value in SECRETS.values() for each in given if value in each]
            assert Path(f"/proc/{pid}/cwd").resolve() not in {tmp_path, Path.cwd()}
    finally:
        store.close()
        lite_server.down(shared)


@pytest.mark.skipif(sys.platform != "linux", reason=NO_PROC)
def test_the_engine_starts_in_a_private_folder_without_files(tmp_path: Path) -> None:
    store = open_store(MilvusConfig(str(tmp_path / "own.db"), collection="images"))
    try:
        (pid,) = [pid for pid, program in _programs().items() if str(tmp_path) in program]
        current = Path(f"/proc/{pid}/cwd").resolve()
        assert current.stat().st_mode & 0o777 == 0o700
        assert {file.name for file in current.iterdir()} == {"s"}, "nothing but the socket it made"
    finally:
        store.close()
    assert not current.exists()


def test_the_library_path_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path("/package/lib/milvus")
    for given, expected in (
        (None, "/package/lib"),
        ("", "/package/lib"),
        (":", "/package/lib"),
        ("/opt/lib", "/package/lib:/opt/lib"),
        (":/opt/lib::lib:./lib:.:/usr/lib:", "/package/lib:/opt/lib:/usr/lib"),
    ):
        for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
            monkeypatch.delenv(name, raising=False)
            if given is not None:
                monkeypatch.setenv(name, given)
            assert lite.environment(program)[name] == expected


def test_what_the_engine_is_given_is_a_short_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name in (*SECRETS, "LD_PRELOAD", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "PYTHONPATH", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "x")
    for name in ("OMP_NUM_THREADS", "TMPDIR"):
        monkeypatch.setenv(name, "/kept")
    monkeypatch.setenv("HOME", str(tmp_path))  # one that it could not write into would be replaced
    assert lite.environment(Path("/package/lib/milvus")) == {
        "LD_LIBRARY_PATH": "/package/lib", "DYLD_LIBRARY_PATH": "/package/lib", "GLOG_logtostderr": "1",
        "HOME": str(tmp_path), "OMP_NUM_THREADS": "/kept", "TMPDIR": "/kept",
    }  # fmt: skip


def test_a_python_that_is_started_finds_modules_in_no_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    assert lite.python_environment() == {}
    for name in ("MGM_TOKEN", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONWARNINGS", "LD_PRELOAD"):
        monkeypatch.setenv(name, "/x")
    monkeypatch.setenv("PYTHONPATH", ":/opt/modules::lib:.")
    monkeypatch.setenv("LD_LIBRARY_PATH", "./lib:/opt/lib:")
    assert lite.python_environment() == {"PYTHONPATH": "/opt/modules", "LD_LIBRARY_PATH": "/opt/lib"}


def _programs() -> dict[int, str]:
    """The command lines of this machine's Milvus Lite engines and daemons, by process number."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if "milvus" in line and ".db" in line:
            found[int(file.parent.name)] = line
    return found
