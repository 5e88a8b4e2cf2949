"""The command line as a user meets it: the command in a process of its own, and where that matters, started anew."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_milvus import __version__
from tests import in_process
from tests.forked import MGM, program
from tests.waiting import PATIENCE

ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith(("MGM_", "COLUMNS")) or key == "MGM_RUNTIME"
}


def mgm(
    *arguments: str | Path, cwd: Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program(), *arguments],
        cwd=cwd,
        input=stdin,
        env=ENVIRONMENT | environment,
        capture_output=True,
        timeout=PATIENCE,
    )


def in_python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def on_a_terminal(*arguments: str | Path, cwd: Path, answer: bytes = b"", until: bytes = b"") -> tuple[int, str]:
    """Run with a terminal of 80 columns as input, output and error; type ``answer`` once ``until`` is seen."""
    leader, follower = pty.openpty()
    environment = ENVIRONMENT | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"}
    process = subprocess.Popen(
        [program(), *arguments], cwd=cwd, env=environment, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    seen = b""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if select.select([leader], [], [], 1.0)[0]:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            seen += chunk
            if answer and until in seen:
                os.write(leader, answer)
                answer = b""
    code = process.wait(timeout=PATIENCE)
    os.close(leader)
    return code, seen.decode()


def scene(seed: int, side: int = 96) -> Image.Image:
    """An image of soft coloured blobs that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side + seed % 3 * 16, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with ``images/``: twelve good ones, two broken ones; and ``mgm.db`` made of them."""
    folder = tmp_path_factory.mktemp("home")
    images = folder / "images"
    (images / "deep er").mkdir(parents=True)
    for seed in range(12):
        scene(seed).save(images / ("deep er" if seed % 2 else ".") / f"scene {seed}.png")
    (images / "broken\n\x1b[31mfile.jpg").write_bytes(b"\xff\xd8\xff no image")
    (images / "empty.png").touch()
    done = mgm("ingest", "images", "--json", cwd=folder)
    (folder / "ingest.json").write_bytes(done.stdout)
    (folder / "ingest.err").write_bytes(done.stderr)
    assert done.returncode == 3, done.stderr.decode()
    return folder


def test_ingest_reports_in_json_and_tells_its_progress_on_standard_error(home):
    report = json.loads((home / "ingest.json").read_text())
    assert {key: report[key] for key in ("seen", "added", "updated", "unchanged", "removed", "failed")} == {
        "seen": 14, "added": 12, "updated": 0, "unchanged": 0, "removed": 0, "failed": 2,
    }  # fmt: skip
    assert sorted(Path(failure["path"]).name for failure in report["failures"]) == [
        "broken\n\x1b[31mfile.jpg", "empty.png",
    ]  # fmt: skip
    assert (home / "ingest.err").read_text().startswith("encoding: ")


def test_a_rerun_skips_what_is_unchanged_and_lists_the_failures_safely(home):
    done = mgm("ingest", "images", cwd=home)
    assert done.returncode == 3
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("14 seen: 0 added, 0 updated, 12 unchanged, 0 removed, 2 failed (")
    assert lines[2] == "2 could not be read:"
    assert any(r"/broken\n\x1b[31mfile.jpg: " in line for line in lines[3:])
    assert b"\x1b" not in done.stdout + done.stderr


def test_query_prints_a_table(home):
    done = mgm("query", "images/scene 4.png", "-k", "3", cwd=home)
    assert (done.returncode, done.stderr) == (0, b"")
    head, first, *rest = done.stdout.decode().splitlines()
    assert head.split() == ["rank", "score", "path", "coarse", "mid", "fine"]
    assert first.split()[0] == "1"
    assert f"{home}/images/scene 4.png" in first
    assert first.split()[-6::2] == ["0", "0", "0"]
    assert first.split()[-1] == "#1"
    assert len(rest) == 2


def test_query_prints_json_lines_for_several_images_and_standard_input(home):
    data = (home / "images/deep er/scene 7.png").read_bytes()
    done = mgm("query", "images/scene 2.png", "-", "-k", "2", "--json", cwd=home, stdin=data)
    assert done.returncode == 0, done.stderr.decode()
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(hit["query"], hit["rank"]) for hit in hits] == [
        ("images/scene 2.png", 1), ("images/scene 2.png", 2), ("-", 1), ("-", 2),
    ]  # fmt: skip
    assert [Path(hit["path"]).name for hit in hits[::2]] == ["scene 2.png", "scene 7.png"]
    assert hits[0]["distances"] == {"coarse": 0, "mid": 0, "fine": 0}
    assert set(hits[0]["ranks"]) == {"coarse", "mid", "fine"}
    assert (hits[0]["width"], hits[0]["height"]) == (128, 96)
    assert len(hits[0]["id"]) == 32


def test_like_leaves_the_image_itself_out_and_the_page_is_written(home):
    done = mgm("query", "--like", "images/scene 0.png", "-k", "4", "--html", "page.html", "--json", cwd=home)
    assert done.returncode == 0, done.stderr.decode()
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(hits) == 4
    assert all(Path(hit["path"]).name != "scene 0.png" for hit in hits)
    page = (home / "page.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 5
    assert done.stderr == b"mgm: wrote page.html\n"
    found = json.loads(mgm("query", "images/scene 0.png", "-k", "1", "--json", cwd=home).stdout)
    mgm("query", "--like", found["id"], "-k", "4", "--html", "by id.html", cwd=home)
    assert (home / "by id.html").read_text(encoding="utf-8").count('<img src="data:image/jpeg;base64,') == 5


def test_a_filter_and_weights_reach_the_query(home):
    done = mgm("query", "images/scene 0.png", "--filter", "width == 96", "--weights", "fine=1", "--json", cwd=home)
    assert done.returncode == 0, done.stderr.decode()
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    assert {Path(hit["path"]).name for hit in hits} == {f"scene {seed}.png" for seed in (0, 3, 6, 9)}
    assert [hit["ranks"]["fine"] for hit in hits] == [1, 2, 3, 4]


def test_info(home):
    done = mgm("info", "--json", cwd=home)
    told = json.loads(done.stdout)
    assert (told["rows"], told["collection"], told["bytes_per_image"]) == (12, "images", (64 + 128 + 256) // 8)
    lines = mgm("info", cwd=home).stdout.decode().splitlines()
    assert "rows               12" in lines
    assert "granularities      coarse 64 bits, mid 128 bits, fine 256 bits" in lines


def test_settings_come_from_environment_and_file(home, tmp_path):
    elsewhere = mgm("info", "--json", cwd=tmp_path, MGM_URI=str(home / "mgm.db"))
    assert json.loads(elsewhere.stdout)["rows"] == 12
    (tmp_path / "mgm.yaml").write_text(f"uri: {home / 'mgm.db'}\n")
    assert json.loads(mgm("info", "--json", cwd=tmp_path).stdout)["rows"] == 12


def test_delete(home, tmp_path):
    (tmp_path / "mgm.db").write_bytes((home / "mgm.db").read_bytes())
    unknown = mgm("delete", f"{home}/images/scene 0.png", "nowhere.png", cwd=tmp_path)
    assert (unknown.returncode, unknown.stdout) == (1, b"")
    assert unknown.stderr.startswith(b"mgm: 'nowhere.png' is neither the id nor the path")
    assert unknown.stderr.count(b"\n") == 1
    one = mgm("delete", f"{home}/images/scene 0.png", cwd=tmp_path)
    assert (one.returncode, one.stdout) == (0, b"1 row deleted\n")
    unasked = mgm("delete", "--filter", "width == 96", cwd=tmp_path)
    assert unasked.returncode == 2
    assert b"--yes" in unasked.stderr
    code, seen = on_a_terminal("delete", "--filter", "width == 96", cwd=tmp_path, answer=b"n\n", until=b"?")
    assert code == 1
    assert "Delete 3 rows of 'images'?" in seen
    assert "Nothing was deleted." in seen
    sure = mgm("delete", "--filter", "width == 96", "--yes", cwd=tmp_path)
    assert (sure.returncode, sure.stdout) == (0, b"3 rows deleted\n")
    assert json.loads(mgm("info", "--json", cwd=tmp_path).stdout)["rows"] == 8


def test_on_a_terminal_there_is_a_bar_and_the_file_names_stay_in_sight(home, tmp_path):
    code, seen = on_a_terminal("ingest", home / "images", cwd=tmp_path)
    assert code == 3
    assert "14/14" in seen
    assert "2 failed" in seen
    code, seen = on_a_terminal("query", home / "images" / "deep er" / "scene 5.png", "-k", "2", cwd=tmp_path)
    assert code == 0
    assert "/deep er/scene 5.png" in seen


def test_a_dry_run_and_doctor_make_no_index(home, tmp_path):
    done = mgm("ingest", home / "images", "--dry-run", cwd=tmp_path)
    assert done.returncode in (0, 3)
    assert b"nothing was written" in done.stdout
    told = in_process.mgm("doctor", "--json", cwd=tmp_path)  # torch is imported here already
    checks = {check["name"]: check for check in json.loads(told.stdout)["checks"]}
    assert told.returncode == 0
    assert checks["milvus"]["message"] == "no index here yet (mgm.db): mgm ingest makes it"
    assert checks["encoder"]["ok"]
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_failed_and_what_to_do(tmp_path):
    done = in_process.mgm("doctor", "--uri", "http://127.0.0.1:9", "--timeout", "0.5", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    problem = next(i for i, line in enumerate(lines) if line.startswith("FAIL milvus: "))
    assert lines[problem + 1].startswith("     remedy: start the server")
    assert lines[-1] == f"1 of {sum(line.startswith(('ok ', 'FAIL ')) for line in lines)} checks failed."


def test_doctor_finds_the_collection_and_its_encoder(home):
    done = in_process.mgm("doctor", cwd=home)
    assert done.returncode == 0, done.stdout
    assert "collection: 'images', 12 rows, encoder " in done.stdout


def test_without_an_index_a_query_is_one_line_and_makes_none(home, tmp_path):
    done = mgm("query", home / "images/scene 0.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"mgm: ")
    assert done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["query"], "give image files"),
        (["query", "a.png", "--like", "b.png"], "not both"),
        (["query", "-", "-"], "given once"),
        (["query", "--like", "b.png", "--crop", "1,2,3,4"], "needs the image itself"),
        (["query", "a.png", "--weights", "fine=1", "--profile", "object"], "give one of them"),
        (["query", "a.png", "--weights", "fine"], "coarse=1,fine=3"),
        (["query", "a.png", "--profile", "breed"], "category"),
        (["query", "a.png", "--crop", "1,2,3"], "X,Y,W,H"),
        (["query", "a.png", "--crop", "1,2,0,4"], "W and H 1 or more"),
        (["query", "a.png", "-k", "0"], "k"),
        (["delete"], "give ids or paths"),
        (["delete", "a.png", "--filter", "width > 1"], "not both"),
        (["ingest"], "FOLDER_OR_FILE"),
        (["fit", ".", "--out", "x", "--bits", "coarse=12"], "multiple of 8"),
        (["ingets", "."], "ingest"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_is_right(tmp_path, arguments, expected):
    done = mgm(*arguments, cwd=tmp_path, COLUMNS="1000")
    assert done.returncode == 2
    assert expected in done.stderr.decode()
    assert done.stdout == b""


def test_help_is_instant_and_loads_nothing_heavy(tmp_path):
    heavy = ("torch", "torchvision", "pymilvus", "milvus_lite", "numpy", "PIL", "jinja2", "yaml")
    code = f"""
import sys
from mg_milvus.cli.app import app
for arguments in (["--help"], ["query", "--help"], ["schema", "--help"]):
    try:
        app(arguments, prog_name="mgm")
    except SystemExit as stop:
        assert stop.code == 0
print("LOADED", sorted(set({heavy!r}) & set(sys.modules)))
"""
    done = in_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
    for command in ("ingest", "query", "delete", "info", "doctor", "fit", "refit", "schema", "version"):
        assert f" {command} " in done.stdout


def test_every_command_has_an_example_and_every_option_help():
    from typer.main import get_command

    from mg_milvus.cli.app import app

    def leaves(command, name):
        children = getattr(command, "commands", None)
        if not children:
            yield name, command
        for child in (children or {}).values():
            yield from leaves(child, f"{name} {child.name}")

    found = dict(leaves(get_command(app), "mgm"))
    assert len(found) >= 13
    for name, command in found.items():
        assert command.help, name
        assert name == "mgm version" or f"{name} " in f"{command.epilog} ", name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mgm que", {"query"}),
        ("mgm query --profile ", {"auto", "category", "object", "instance", "balanced"}),
        ("mgm query --fusion s", {"score", "server"}),
        ("mgm query --granularity f", {"fine"}),
        ("mgm ingest --device ", {"auto", "cpu", "cuda", "mps"}),
    ],
)
def test_completion(tmp_path, words, expected):
    done = mgm(cwd=tmp_path, _MGM_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    assert set(done.stdout.decode().split()) == expected


def test_completion_can_be_shown(tmp_path):
    # Without this, read at the start, the shell is looked for among the parent processes, and a test may have none.
    environment = ENVIRONMENT | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run([MGM, "--show-completion", "bash"], cwd=tmp_path, env=environment, capture_output=True)
    assert b"_MGM_COMPLETE=complete_bash" in done.stdout


def test_version(tmp_path):
    expected = f"mg-milvus {__version__}\n".encode()
    for started in ([MGM, "version"], [MGM, "--version"], [program(), "version"]):
        assert subprocess.run(started, capture_output=True, cwd=tmp_path).stdout == expected
    module = subprocess.run([sys.executable, "-m", "mg_milvus", "version"], capture_output=True, cwd=tmp_path)
    assert module.stdout == expected


def test_a_reader_that_has_seen_enough_is_no_error(home):
    command = f"'{MGM}' query images/*.png -k 12 --json 2>err | head -n 1; echo ${{PIPESTATUS[0]}}"
    (home / "images/empty.png").rename(home / "empty.png")
    try:
        done = subprocess.run(["bash", "-c", command], cwd=home, env=ENVIRONMENT, capture_output=True, timeout=PATIENCE)
    finally:
        (home / "empty.png").rename(home / "images/empty.png")
    first, code = done.stdout.splitlines()
    assert json.loads(first)["rank"] == 1
    assert code == b"0"
    assert (home / "err").read_text() == ""


def test_an_unexpected_error_is_one_line_and_a_traceback_only_for_developers(tmp_path):
    code = "import sys; from mg_milvus.cli import app as a; a.app = lambda prog_name: 1 / 0; sys.exit(a.run())"
    done = in_python(code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("mgm: unexpected ZeroDivisionError: division by zero. ")
    assert "MGM_DEBUG=1 and report the traceback" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" in in_python(code, tmp_path, MGM_DEBUG="1").stderr


@pytest.fixture
def many(tmp_path) -> Path:
    """A folder of 600 images that take a while to decode."""
    folder = tmp_path / "many"
    folder.mkdir()
    scene(1, 1600).save(tmp_path / "one.jpg")
    for number in range(600):
        os.link(tmp_path / "one.jpg", folder / f"{number}.jpg")
    return folder


def test_ctrl_c_keeps_what_is_stored_and_says_so(many):
    cwd = many.parent
    (cwd / "schema.yaml").write_text("encoder:\n  heads: fixed\n")
    process = subprocess.Popen(
        [MGM, "ingest", "many", "--schema", "schema.yaml", "--batch-size", "8", "--json"],
        cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell starts background jobs with SIGINT ignored, and so would be whatever they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"encoding: ")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"Traceback" not in err
    report = json.loads(out)
    assert report["interrupted"] is True
    assert report["added"] < 600
    if report["added"]:
        assert json.loads(mgm("info", "--json", cwd=cwd).stdout)["rows"] == report["added"]


def test_ctrl_c_elsewhere_says_interrupted(tmp_path):
    code = """
import sys
from mg_milvus.cli import app as a, manage
import mg_milvus.cli.settings as settings
def interrupt(*args):
    raise KeyboardInterrupt
settings.settings_from = interrupt
sys.argv = ["mgm", "info"]
sys.exit(a.run())
"""
    done = in_python(code, tmp_path)
    assert (done.returncode, done.stderr) == (130, "mgm: interrupted\n")
