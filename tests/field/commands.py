"""Random but legal commands in random environments, run one after the other in processes of their own.

``python -m tests.field.commands SEED COUNT FOLDER`` prints a JSON line each: ``FOLDER`` holds photos/, empty/, mgm.db
and some tables. A process that has loaded the program is forked for each command, which is quicker than to start it;
with ``--start`` each command is started as a shell does it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 120
"""Within which every command ends, on a slow machine, too."""

NEVER = {"serve", "up"}
"""Commands that run until they are stopped, or leave a program behind."""
RARE = {"train", "eval", "tune", "fit", "refit", "encode", "doctor"}
"""Commands that take seconds."""

ODD = ("", "none", "no/such/file", "/dev/null/x", ".", "ü\u202e ", "-", "a\nb", "x" * 300)
IMAGES = ("photos/0.jpg", "photos/5.jpg", "./photos/../photos/1.jpg", "photos", "empty", "notes.txt", "-")
FOLDERS = ("photos", "photos", "photos/", "empty", "photos/0.jpg", "none")
NUMBERS = ("1", "2", "5", "64", "1000")
OUT = ("out", "out.html", "no/such/out.html", "/dev/null/x", "photos", ".")
"""Nothing that exists outside of the folder: whoever runs the tests may be root."""

VALUES: dict[str, tuple[str, ...]] = {
    "add": ("beach", "to print", "", "x" * 300),
    "archive": OUT,
    "form": ("paths", "csv", "json", "xml"),
    "limit": NUMBERS,
    "move_to": ("aside", "photos", "photos/0.jpg", "no/such/aside", "/dev/null/x"),
    "order_by": ("size", "-size", "path", "none", "-"),
    "remove": ("beach", "", "none"),
    "undo": ("aside", "photos", "none"),
    "text": ("dog", "sports car", "beegle", ""),
    "backbone": ("builtin", "resnet18", "none"),
    "batch_size": ("1", "64"),
    "bits": ("coarse=64,fine=256", "fine=7", "x"),
    "bucket": ("s3://none/x", "none"),
    "ca_cert": ("notes.txt", "none.pem"),
    "client_cert": ("notes.txt", "none.pem"),
    "client_key": ("notes.txt", "none.pem"),
    "cluster": ("1", "2.1", "beach", "none", ""),
    "codes": ("codes.npz", "codes.txt", "no/such/codes.mat"),
    "collection": ("images", "images", "other", "no-such", "ünï"),
    "config": ("schema.yaml", "none.yaml"),
    "copies": NUMBERS,
    "crop": ("0,0,8,8", "0,0,64,48", "60,40,10,10", "1,2,3"),
    "data": ("mgm.db", "other.db", "none/", "."),
    "depth": NUMBERS,
    "device": ("cpu", "auto", "cuda"),
    "distance": ("0", "20", "-1", "100000"),
    "encoder": ("builtin", "none.safetensors", "notes.txt"),
    "epochs": ("1",),
    "exclude": ("*.png", "photos/", "!", "*"),
    "field": ("kind", "name", "path", "none", ""),
    "file": ("schema.yaml", "default", "none.yaml", "notes.txt", "photos/0.jpg"),
    "folder": FOLDERS,
    "folds": ("2", "5"),
    "freeze": ("stem", "all"),
    "fusion": ("rank", "score", "chance", "server"),
    "goal": ("map", "precision", "instance"),
    "granularity": ("coarse", "mid", "fine", "regions", "none"),
    "heads": ("fixed", "adapt", "adaptive"),
    "html": OUT,
    "ids_or_paths": ("photos/0.jpg", "photos/9.jpg", "0" * 32, "none"),
    "ignore": ("seen.jsonl", "notes.txt", "photos"),
    "images": IMAGES,
    "images_per_second": NUMBERS,
    "include": ("edited", "all"),
    "init": ("none.safetensors",),
    "k": NUMBERS,
    "keep_folder": FOLDERS,
    "keep": ("best", "largest", "oldest", "newest", "first"),
    "labels": ("table.csv", "notes.txt", "none.csv"),
    "least": ("same-image", "same-kind", "loosely-similar", "kind"),
    "like": ("photos/0.jpg", "photos/1.jpg", "none", "0" * 32),
    "lists": ("table.csv,notes.txt", "none.txt", "notes.txt"),
    "loaders": ("0", "1"),
    "loss": ("csq", "dsh", "orthohash"),
    "machines": NUMBERS,
    "map_at": NUMBERS,
    "max_chance": ("0.001", "1", "0", "nan"),
    "max_pixels": ("1", "100", "1000000", "200000000"),
    "names": ("1=beach", "1=", "beach", "9=x"),
    "memory": ("1GB", "64GB", "x"),
    "metadata": ("table.csv", "notes.txt", "none.csv", "photos"),
    "method": ("adaptive", "itq", "lsh"),
    "metrics_file": ("mgm.prom", "no/such/mgm.prom", "/dev/null/x"),
    "new_since": ("2d", "12h", "2026-01-31", "tomorrow"),
    "new": FOLDERS,
    "of": IMAGES,
    "old": FOLDERS,
    "on": ("spark", "ray://", "x"),
    "out": OUT,
    "pairs": ("table.csv", "none.csv"),
    "path_bytes": NUMBERS,
    "port": ("0", "19530", "65536"),
    "precision": ("0.9", "0.5", "1.5", "nan"),
    "preset": ("default", "regions", "none"),
    "profile": ("auto", "category", "object", "instance", "balanced"),
    "protocol": ("leave-one-out", "copies", "none"),
    "queries": ("2", "photos"),
    "rate": ("0.001", "nan", "-1"),
    "recipe": ("ours", "paper", "none"),
    "reference": FOLDERS,
    "report": OUT,
    "report_folder": OUT,
    "rest": ("http://127.0.0.1:1", "x"),
    "rows_per_file": NUMBERS,
    "rrf_k": NUMBERS,
    "run": OUT,
    "sample": NUMBERS,
    "schema": ("default", "regions", "schema.yaml", "none.yaml", "notes.txt"),
    "seed": NUMBERS,
    "seeds": ("1", "2", "0"),
    "seen": ("0.5", "notes.txt", "2"),
    "server_name": ("localhost",),
    "shard": ("1/1", "2/3", "3/2", "x"),
    "share": ("0.5", "2"),
    "sources": FOLDERS,
    "stop_after": ("1",),
    "table": ("latex", "markdown", "none"),
    "taps": ("none", "1,2"),
    "tensorboard": OUT,
    "text_bytes": NUMBERS,
    "timeout": ("0.1", "3"),
    "to": ("other", "images", "ünï"),
    "token": ("user:password", "x"),
    "unlike": IMAGES,
    "uri": ("mgm.db", "mgm.db", "./mgm.db", "new.db", "no/such/x.db", "photos/0.jpg", "http://127.0.0.1:1"),
    "weighted": ("2:photos/0.jpg", "-0.5:photos/1.jpg", "1:none.jpg", "x", "nan:photos/0.jpg"),
    "weights": ("coarse=1,fine=3", "fine=0", "none=1", "fine", "coarse=1e999"),
    "where": ("width >= 60", 'path like "%jpg"', "none == 1", "width >", "width == 60 or height == 48"),
    "within": FOLDERS,
    "workers": ("1", "3"),
}
"""Name of a parameter -> values that it may be given; ``ODD`` ones, too, now and then."""

VARIABLES: dict[str, tuple[str | None, ...]] = {
    "LC_ALL": ("C", "POSIX", "C.UTF-8", "xx_XX.nothing", None),
    "LANG": ("de_DE.ISO-8859-1", None),
    "HOME": (None, "", "/dev/null/home", "relative"),
    "TMPDIR": (None, "/dev/null/x", "no/such/folder", "."),
    "XDG_CACHE_HOME": (None, "", "/dev/null/cache", "cache"),
    "COLUMNS": ("1", "20", "-5", "x", "0"),
    "TERM": ("dumb", "", None, "nothing"),
    "PYTHONIOENCODING": ("latin-1", "ascii:strict", None),
    "PATH": ("", None),
    "TZ": ("nothing/here", None),
    "NO_COLOR": ("1", None),
    "FORCE_COLOR": ("1", None),
    "MGM_LOG_JSON": ("1", None),
    "MGM_BATCH_SIZE": ("1", "0", "x"),
    "MGM_WORKERS": ("2", ""),
    "MGM_COLLECTION": ("images", ""),
    "MGM_SHOW": ("blocks", "kitty", "x"),
    "http_proxy": ("http://127.0.0.1:1", None),
}
"""Variables of the environment, and what they may be; None: not set."""

UMASKS = (0, 0o022, 0o077, 0o777)
STREAMS = ("closed", "full", "none")


@dataclass(frozen=True)
class Command:
    """What to run, and where: ``streams`` says of standard input, output and error what they are unless usual."""

    words: tuple[str, ...]
    variables: dict[str, str | None] = field(default_factory=dict)
    umask: int = 0o022
    streams: tuple[str, str, str] = ("", "", "")


@cache
def commands() -> dict[tuple[str, ...], Any]:
    """The words of every command that ends by itself -> the command."""
    import typer

    from mg_milvus.cli.app import app

    found: dict[tuple[str, ...], Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            found |= {(name, sub): each for sub, each in command.commands.items()}
        elif name not in NEVER:
            found[(name,)] = command
    return found


def parameters(command: Any) -> list[Any]:
    """Its arguments and options, but ``--help``."""
    return [parameter for parameter in command.params if parameter.name != "help"]


def make_command(seed: int) -> Command:
    """The command of a number: the same one whenever it is asked for."""
    chance = random.Random(seed)
    known = commands()
    weights = [1 if words[0] in RARE else 4 for words in known]
    (words,) = chance.choices(list(known), weights)
    options: list[str] = []
    arguments: list[str] = []
    for parameter in parameters(known[words]):
        is_argument = parameter.param_type_name == "argument"
        if not (parameter.required or is_argument) and chance.random() > 0.2:
            continue
        if is_argument and not parameter.required and chance.random() < 0.4:
            continue
        if getattr(parameter, "is_flag", False):
            options.append(parameter.opts[0])
            continue
        for _ in range(chance.choice((1, 1, 2)) if parameter.nargs == -1 or parameter.multiple else 1):
            value = chance.choice(ODD) if chance.random() < 0.1 else chance.choice(VALUES[parameter.name])
            if not is_argument:
                options += [parameter.opts[0], value]
            else:
                arguments.append(value)
    some = chance.sample(sorted(VARIABLES), chance.choice((0, 0, 1, 2, 4)))
    streams = tuple(chance.choice(STREAMS) if chance.random() < 0.1 else "" for _ in range(3))
    umask = chance.choice(UMASKS) if chance.random() < 0.3 else 0o022
    if "--timeout" not in options and any(parameter.name == "timeout" for parameter in parameters(known[words])):
        options += ["--timeout", "3"]
    return Command(
        (*words, *options, "--", *arguments) if arguments else (*words, *options),
        {name: chance.choice(VARIABLES[name]) for name in some}, umask, streams,  # type: ignore[arg-type]
    )  # fmt: skip


def environment(command: Command) -> dict[str, str]:
    """The variables that the command sees."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MGM_")}
    for name, value in command.variables.items():
        own.pop(name, None)
        if value is not None:
            own[name] = value
    return own


def set_streams(command: Command, files: tuple[int, int, int]) -> None:
    """Make the streams of this process those of the command."""
    for number, (kind, file) in enumerate(zip(command.streams, files, strict=True)):
        if kind == "closed":
            os.close(number)
        elif kind == "full" and number:
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        elif kind == "none":
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        else:
            os.dup2(file, number)


def forked(command: Command, folder: Path, files: tuple[int, int, int]) -> int:
    """Run the command in a fork of this process; its exit code, negative for a signal."""
    child = os.fork()
    if not child:
        code = 70
        try:
            signal.alarm(SECONDS)
            os.setsid()  # no terminal
            os.chdir(folder)
            os.umask(command.umask)
            os.environ.clear()
            os.environ.update(environment(command))
            set_streams(command, files)
            ascii_only = os.environ.get("LC_ALL") in {"C", "POSIX"}
            encoding = os.environ.get("PYTHONIOENCODING", "ascii" if ascii_only else "utf-8").partition(":")[0]
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                try:
                    stream = io.TextIOWrapper(
                        open(number, "wb" if number else "rb", closefd=False),  # type: ignore[arg-type]  # noqa: SIM115
                        encoding=encoding, line_buffering=number == 2,
                    )  # fmt: skip
                except OSError:
                    stream = None  # type: ignore[assignment]
                setattr(sys, name, stream)
            sys.argv = ["mgm", *command.words]
            from mg_milvus.cli.app import run

            code = run()
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except BaseException:  # noqa: BLE001 - it would go on as the parent
            import traceback

            os.write(files[2], traceback.format_exc().encode())
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def started(command: Command, folder: Path, files: tuple[int, int, int]) -> int:
    """Run the command as a program of its own."""
    signs = {"closed": "{}&-", "full": "{}/dev/full", "none": "{}/dev/null"}
    redirections = " ".join(
        signs[kind].format(mark) for kind, mark in zip(command.streams, ("<", ">", "2>"), strict=True)
        if kind and (kind, mark) != ("full", "<")
    )  # fmt: skip
    program = Path(sysconfig.get_path("scripts")) / "mgm"
    try:
        return subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" "$@" {redirections}', program, *command.words],
            cwd=folder, env=environment(command), stdin=files[0], stdout=files[1], stderr=files[2], timeout=SECONDS,
            umask=command.umask, start_new_session=True, check=False,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return -signal.SIGALRM


def index_of(folder: Path) -> str:
    """What identifies the bytes of the index."""
    return hashlib.blake2b((folder / "mgm.db").read_bytes()).hexdigest()


def run_all(seed: int, count: int, folder: Path, *, start: bool = False) -> Iterator[dict[str, Any]]:
    """Run the commands of ``count`` numbers, each in a copy of the folder, which stays if the index has changed."""
    from mg_milvus import index  # noqa: F401 - what every command needs, before they fork
    from mg_milvus.store import milvus  # noqa: F401

    before = index_of(folder)
    for number in range(seed, seed + count):
        command = make_command(number)
        own = folder.with_name(f"run-{number}")
        shutil.copytree(folder, own)
        begun = time.monotonic()
        with (
            (own / "photos/0.jpg").open("rb") as given,
            own.with_suffix(".out").open("w+b") as out,
            own.with_suffix(".err").open("w+b") as err,
        ):
            files = (given.fileno(), out.fileno(), err.fileno())
            code = (started if start else forked)(command, own, files)
            out.seek(0)
            err.seek(0)
            said = {"out": out.read(), "err": err.read()}
        changed = index_of(own) != before
        yield {
            "number": number, "words": command.words, "variables": command.variables, "umask": oct(command.umask),
            "streams": command.streams, "code": code, "seconds": round(time.monotonic() - begun, 2),
            "changed": changed, "folder": str(own),
        } | {name: text.decode(errors="replace")[-4000:] for name, text in said.items()}  # fmt: skip
        if not changed:
            subprocess.run(["chmod", "-R", "u+rwX", own], check=False)
            shutil.rmtree(own, ignore_errors=True)


if __name__ == "__main__":
    for record in run_all(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), start="--start" in sys.argv):
        print(json.dumps(record), flush=True)
