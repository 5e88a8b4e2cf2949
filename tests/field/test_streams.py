"""Standard input, output and error that are closed, full or broken: one line, the right exit code, nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.field.shells import make_index, shell

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux'")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("streams"))


@pytest.mark.parametrize("words", [["query", "photos/0.jpg"], ["info", "--json"], ["version"], ["query", "--help"]])
@pytest.mark.parametrize(
    ("redirection", "cause"), [(">&-", b"Bad file descriptor"), (">/dev/full", b"No space left on device")]
)
def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(home, words, redirection, cause):
    done = shell(words, home, redirection)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"mgm: standard output: " + cause)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_messages_that_cannot_be_written_change_nothing(home, redirection):
    done = shell(["query", "photos/0.jpg", "-k", "1"], home, redirection)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert shell(["query", "--no-such-option"], home, redirection).returncode == 2
    assert shell(["query", "photos/none.jpg"], home, redirection).returncode == 1


def test_the_work_is_done_though_nothing_can_be_written(home):
    done = shell(["ingest", "photos"], home, "<&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    assert b"4" in shell(["info"], home).stdout


def test_a_file_that_is_opened_never_takes_the_number_of_a_closed_stream(home):
    before = (home / "mgm.db").read_bytes()[:16]
    shell(["query", "photos/0.jpg"], home, "<&- >&- 2>&-")
    assert (home / "mgm.db").read_bytes()[:16] == before


@pytest.mark.parametrize(
    ("redirection", "said"), [("<&-", b"cannot be read (Bad file descriptor)"), ("</dev/null", b"is empty")]
)
def test_input_that_gives_no_image_is_one_line(home, redirection, said):
    done = shell(["query", "-"], home, redirection)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"mgm: standard input " + said)
