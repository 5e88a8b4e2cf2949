"""What people see: text that cannot steer the terminal, paths whose end stays, tables, progress."""

from __future__ import annotations

import re

import pytest

from mg_milvus.cli.console import ProgressView, print_failures, shorten
from mg_milvus.cli.evaluate import print_table
from mg_milvus.cli.ingest import summary
from mg_milvus.cli.log import log_error
from mg_milvus.cli.query import print_hits
from mg_milvus.files import escape_controls
from mg_milvus.records import Failure, Hit, Progress
from mg_milvus.results import Hits, IngestReport

BITS = {"coarse": 64, "mid": 128, "fine": 256}


def a_hit(rank: int, path: str) -> Hit:
    return Hit(
        rank, f"{rank:032x}", path, 0.0489, {"coarse": 3, "mid": 20, "fine": 77}, {"coarse": 1.5, "mid": 2, "fine": 3}
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("Zoë 猫 🐈.jpg", "Zoë 猫 🐈.jpg"),
        ("👩\u200d🚀.jpg", "👩\u200d🚀.jpg"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[2Jcleared", r"\x1b[2Jcleared"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        ("a\rb\tc\x00", r"a\rb\tc\x00"),
        ("line\u2028separator\x85", r"line\u2028separator\x85"),
    ],
)
def test_text_cannot_steer_the_terminal(text, shown):
    assert escape_controls(text) == shown


@pytest.mark.parametrize(
    ("path", "width", "shown"),
    [
        ("/a/b/c.jpg", 10, "/a/b/c.jpg"),
        ("/a/b/c.jpg", 9, "…/b/c.jpg"),
        ("/photos/holiday/cat.jpg", 8, "…cat.jpg"),
        ("/猫猫猫/cat.jpg", 12, "…猫/cat.jpg"),  # each ideograph is two columns wide
    ],
)
def test_paths_are_cut_from_the_left(path, width, shown):
    assert shorten(path, width) == shown


def table(capsys, monkeypatch, width, paths, **options):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    print_hits(Hits([a_hit(rank, path) for rank, path in enumerate(paths, 1)]), BITS, **options)
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).rstrip("\n").split("\n")


def test_the_table_fits_a_terminal_and_keeps_the_file_names(capsys, monkeypatch):
    lines = table(capsys, monkeypatch, 80, ["/home/ada/images/2024/holidays/a long way/cat.jpg", "/b.jpg"])
    assert len(lines) == 3
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert lines[0].split() == ["rank", "score", "path", "coarse", "mid", "fine"]
    assert "…" in lines[1]
    assert "/cat.jpg" in lines[1]
    assert lines[1].split()[-6:] == ["3", "#1.5", "20", "#2", "77", "#3"]
    assert lines[2].split()[:3] == ["2", "0.0489", "/b.jpg"]


def test_on_a_narrow_terminal_the_granularities_move_below(capsys, monkeypatch):
    lines = table(capsys, monkeypatch, 50, ["/home/ada/images/2024/holidays/a long way/cat.jpg"])
    assert all(len(line.rstrip()) <= 50 for line in lines)
    assert lines[1].rstrip().endswith("/cat.jpg")
    assert lines[2].split() == ["coarse", "3", "#1.5", "mid", "20", "#2", "fine", "77", "#3"]


def test_in_a_pipe_paths_are_whole(capsys):
    path = "/very" * 60 + "/cat.jpg"
    print_hits(Hits([a_hit(1, path)]), BITS)
    assert path in capsys.readouterr().out


def test_markup_in_a_path_is_text(capsys):
    print_hits(Hits([a_hit(1, "/[red]x[/red] :smile:.jpg")]), BITS)
    assert "/[red]x[/red] :smile:.jpg" in capsys.readouterr().out


def test_no_hits_say_so(capsys):
    print_hits(Hits(), BITS, title="cat.jpg")
    assert capsys.readouterr().out == "cat.jpg\nNo images found.\n"


def test_the_summary_tells_all_counts_and_the_rate():
    report = IngestReport(1200, 1000, 20, 170, 4, (Failure("x", "y"),) * 10, seconds=10.0, adapted_on=1000)
    assert summary(report) == (
        "1,200 seen: 1,000 added, 20 updated, 170 unchanged, 4 removed, 10 failed (102.0 images/s, 10.0 s)\n"
        "The hash heads were fitted on 1,000 of these images."
    )


def test_the_summary_says_what_an_interrupt_and_a_dry_run_mean():
    interrupted = summary(IngestReport(9, 3, 0, 0, 0, (), 1.0, interrupted=True))
    assert "are stored; run the same command again" in interrupted
    assert "nothing was written" in summary(IngestReport(9, 9, 0, 0, 0, (), 1.0, dry_run=True))


def test_failures_are_one_line_each(capsys):
    print_failures([Failure("/a\n  all is well.jpg", "is empty: 0 bytes"), Failure("/b.jpg", "is\ntruncated")])
    assert capsys.readouterr().out.split("\n") == [
        "",
        "2 could not be read:",
        r"  /a\n  all is well.jpg: is empty: 0 bytes",
        r"  /b.jpg: is\ntruncated",
        "",
    ]


def test_a_complaint_is_one_line(capsys):
    log_error("first\nsecond \x1b[31m")
    assert capsys.readouterr().err == "mgm: first second \\x1b[31m\n"


def test_progress_in_a_pipe_is_a_line_per_stage_and_then_one_every_ten_seconds(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with ProgressView() as view:
        view(Progress("fitting hash heads", 0, 1000, 0))
        now[0] += 9
        view(Progress("fitting hash heads", 500, 1000, 0))
        view(Progress("encoding", 0, 2000, 0))
        now[0] += 4
        view(Progress("encoding", 400, 2000, 0))
        now[0] += 6
        view(Progress("encoding", 1000, 2000, 3))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "fitting hash heads: 0 of 1,000 images",
        "encoding: 0 of 2,000 images",
        "encoding: 1,000 of 2,000 images, 3 failed, 100 images/s",
    ]


def test_progress_carries_a_note(capsys):
    with ProgressView() as view:
        view(Progress("epoch 1 of 2", 16, 48, 0), "loss 1.500")
    assert capsys.readouterr().err == "epoch 1 of 2: 16 of 48 images; loss 1.500\n"


def test_wide_tables_are_cut_into_narrow_ones_and_lose_nothing(capsys, monkeypatch):
    columns = dict.fromkeys(("mAP", "P@1", "P@10", "NDCG@1", "NDCG@100", "P@radius 2", "R@1", "R@10"), 0.125)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    for width in (40, 60, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table("figures", {"rank fusion": columns, "mid": {"mAP": 0.25}})
        shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= width
        assert sum(line.count("0.125") for line in shown.splitlines() if line.split()[:1] == ["rank"]) == len(columns)
        assert all(name in shown for name in columns)
        assert shown.count("figures") == 1
