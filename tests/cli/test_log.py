"""``--log-json``: what is told on standard error as events, a JSON object a line."""

from __future__ import annotations

import io
import json
import math
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mg_milvus.cli import log
from mg_milvus.cli.app import app
from mg_milvus.cli.console import ProgressView
from mg_milvus.cli.log import log_error, log_info
from mg_milvus.files import shorten_long
from mg_milvus.records import Failure, Progress
from tests.cli.test_cli import ENVIRONMENT
from tests.forked import MGM
from tests.images import save_image


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])


def events(text: str) -> list[dict[str, Any]]:
    """The events of a log; each line is an object that begins with the fields all have."""
    found = [json.loads(line) for line in text.splitlines()]
    for event in found:
        assert list(event)[:3] == ["time", "level", "event"]
        assert event["time"].endswith("Z")
        assert abs(datetime.fromisoformat(event["time"]) - datetime.now(UTC)) < timedelta(hours=1)
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three good images, and a broken one with a name that would break a line."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(3):
        save_image(folder / f"{seed}.png", seed)
    (folder / 'bro\n"ken".jpg').write_bytes(b"not an image")
    return folder


@pytest.mark.parametrize("place", [0, 1, 2, "environment"])
def test_an_ingest_is_told_as_events(images: Path, place: int | str) -> None:
    arguments = ["ingest", str(images), "--uri", "memory:"]
    environment = {}
    if place == "environment":
        environment["MGM_LOG_JSON"] = "1"
    else:
        arguments.insert(int(place), "--log-json")
    done = run(*arguments, **environment)
    assert done.exit_code == 3
    told = events(done.stderr)
    assert (told[0]["event"], told[0]["command"]) == ("started", "ingest")
    assert (told[-1]["event"], told[-1]["command"], told[-1]["exit_code"]) == ("finished", "ingest", 3)
    assert told[-1]["seconds"] > 0
    broken = [event for event in told if event["event"] == "unreadable"]
    assert [event["path"] for event in broken] == [str(images / 'bro\n"ken".jpg')]
    assert broken[0]["level"] == "warning"
    assert "is not an image" in broken[0]["reason"]
    progress = [event for event in told if event["event"] == "progress"]
    assert (progress[-1]["stage"], progress[-1]["done"], progress[-1]["failed"]) == ("encoding", 4, 1)
    assert "3 added" in done.stdout  # the answer stays where it was


def test_json_on_standard_output_and_the_log_do_not_mix(images: Path) -> None:
    done = run("ingest", images, "--uri", "memory:", "--json", "--log-json")
    assert (json.loads(done.stdout)["added"], done.exit_code) == (3, 3)
    assert [event["event"] for event in events(done.stderr)].count("unreadable") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "error", "message"),
    [
        (["ingest", "nowhere", "--uri", "memory:"], 1, "ImageError", "'nowhere' does not exist"),
        (["ingest"], 2, "UsageError", "Missing argument 'FOLDER_OR_FILE"),
        (["query"], 2, "UsageError", "give image files"),
        (["frobnicate"], 2, "UsageError", "No such command 'frobnicate'"),
        (["info", "--frobnicate"], 2, "UsageError", "No such option"),
        (["--frobnicate"], 2, "UsageError", "No such option"),
    ],
)
def test_errors_are_events_and_exit_codes_stay(arguments: list[str], code: int, error: str, message: str) -> None:
    assert run(*arguments).exit_code == code
    done = run(*arguments, "--log-json")
    told = events(done.stderr)
    (wrong,) = [event for event in told if event["level"] == "error"]
    assert (done.exit_code, wrong["event"], wrong["error"]) == (code, "error", error)
    assert message in wrong["message"]
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["long" * 1250, "/".join(["two words"] * 500)], ids=["one word", "a path with spaces"])
def test_long_names_lose_their_middle_in_lines_and_are_whole_in_json(name: str) -> None:
    line = run("ingest", name).stderr
    assert len(line) < 400
    assert line.startswith(f"mgm: '{name[:100]}")
    assert f"{name[-100:]}'" in line
    assert name in events(run("ingest", name, "--log-json").stderr)[1]["message"]
    assert len(run("query", "--k", name).stderr) < 1000  # in a box


def test_what_stands_between_two_names_stays_whole() -> None:
    columns = ", ".join(f"column_{number}" for number in range(100))
    line = f"'images' has the columns {columns}; did you mean 'column_1'?"
    assert shorten_long(line) == line


def test_every_problem_of_a_schema_is_an_event(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("collection: 1x\ngranularities: [{name: coarse, bits: 7}]\n")
    done = run("schema", "check", tmp_path / "bad.yaml", "--log-json")
    wrong = [event["message"] for event in events(done.stderr) if event["level"] == "error"]
    assert done.exit_code == 1
    assert len(wrong) == 2
    assert all("bad.yaml" in message for message in wrong)


def test_a_file_may_be_called_like_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("ingest", "--uri", "memory:", "--", "--log-json")
    assert (done.exit_code, done.stderr) == (
        1,
        "mgm: '--log-json' does not exist: expected a folder or an image file\n",
    )


def test_a_strange_value_of_the_environment_is_refused() -> None:
    done = run("info", MGM_LOG_JSON="yes")
    assert done.exit_code == 2
    assert "MGM_LOG_JSON is 'yes', expected 1" in " ".join(done.stderr.replace("│", " ").split())
    assert run("version", MGM_LOG_JSON="0").stderr == run("version", MGM_LOG_JSON="").stderr == ""


def test_lines_for_people_become_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stderr := io.StringIO())
    log_error("plain")
    assert stderr.getvalue() == "mgm: plain\n"
    stderr.truncate(stderr.seek(0))
    log.configure(["--log-json"])
    log_error("two\nlines", error="StoreError")
    log_info("wrote page.html", "wrote", file="page.html")
    failure = Failure("/a/\udc80.jpg", "broken")
    with ProgressView() as view:
        view(Progress("encoding", 64, 100, 1, [failure]), "a note")
        view(Progress("encoding", 65, 100, 1, [failure]))  # too soon for another line; the failure is told once
        view(Progress("encoding", 66, 100, 1, [failure]))
        view.print_line("epoch 1 of 2", "epoch", epoch=1.0, loss=math.nan)
    told = [{k: v for k, v in event.items() if k not in {"time", "seconds"}} for event in events(stderr.getvalue())]
    assert told == [
        {"level": "error", "event": "error", "message": "two\nlines", "error": "StoreError"},
        {"level": "info", "event": "wrote", "message": "wrote page.html", "file": "page.html"},
        {"level": "info", "event": "progress", "stage": "encoding", "done": 64, "total": 100, "failed": 1,
         "note": "a note"},
        {"level": "warning", "event": "unreadable", "path": "/a/\udc80.jpg", "reason": "broken"},
        {"level": "info", "event": "epoch", "message": "epoch 1 of 2", "epoch": 1.0, "loss": None},
        {"level": "info", "event": "progress", "stage": "encoding", "done": 66, "total": 100, "failed": 1},
    ]  # fmt: skip


def test_a_bug_is_an_event_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import mg_milvus.capacity as c\ndef broken(*_, **__): raise ZeroDivisionError('oh')\n"
        "import mg_milvus.cli.settings as s; s.settings_from = broken\n"
    )
    from os import environ, pathsep

    path = pathsep.join(filter(None, [str(tmp_path), environ.get("PYTHONPATH", "")]))
    done = subprocess.run(  # started: Python reads the path at its start
        [MGM, "info", "--log-json"], cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": path, "MGM_DEBUG": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    told = events(done.stderr)
    assert (done.returncode, [event["event"] for event in told]) == (1, ["started", "error"])
    assert (told[1]["error"], "ZeroDivisionError: oh" in told[1]["traceback"]) == ("ZeroDivisionError", True)
