"""The page of a training's curves: what is drawn is what was measured."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from mg_milvus.errors import QueryError
from mg_milvus.training.report import write_training_report
from mg_milvus.training.train import TrainReport

MAPS = {"mid": [0.2, 0.5, 0.4, 0.7, 0.65], "fine": [0.1, 0.15, 0.3, 0.35, 0.5]}
LOSSES = {"mid": [4.0, 3.0, 2.5, 1.0, 0.5], "quantisation": [0.5, math.nan, 0.25, 0.125, 0.1]}


def report(epochs: int = 5, **changes: object) -> TrainReport:
    history = [
        {"epoch": epoch + 1.0, **{name: values[epoch] for name, values in LOSSES.items()}}
        | {f"map_{name}": values[epoch] for name, values in MAPS.items()}
        | {"held_out": (MAPS["mid"][epoch] + MAPS["fine"][epoch]) / 2, "seconds": 12.0 + epoch}
        for epoch in range(epochs)
    ]
    told = {
        "fingerprint": "f" * 16, "images": 1234, "held_out": 56, "labels": {"classes": 10}, "epochs": epochs,
        "best_epoch": 4, "history": tuple(history), "failures": (), "seconds": 99.0, "bytes": 10,
    }  # fmt: skip
    return TrainReport(**(told | changes))


def plots(page: str) -> dict[str, str]:
    """What a plot is called -> its SVG."""
    return {svg.split('aria-label="')[1].split('"')[0]: svg for svg in re.findall(r"<svg .*?</svg>", page, re.DOTALL)}


def line(svg: str, colour: str) -> np.ndarray:
    """(points, 2) of the line in a colour, x to the right and y up."""
    (path,) = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--{colour}\); stroke-width: 1.7', svg)
    points = [[float(number) for number in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", path)]
    return np.array(points) * (1, -1)


def test_the_lines_are_the_figures(tmp_path: Path) -> None:
    page = write_training_report(report(), tmp_path / "new", title="t").read_text()
    drawn = plots(page)
    assert list(drawn) == ["mAP of held-out images", "loss mid", "loss quantisation"]
    found = drawn["mAP of held-out images"]
    expected = MAPS["mid"] + MAPS["fine"] + [sum(pair) / 2 for pair in zip(*MAPS.values(), strict=True)]
    points = np.concatenate([line(found, colour) for colour in ("h0", "h1", "soft")])
    for place, values in ((0, np.tile(np.arange(1, 6), 3)), (1, np.array(expected))):
        scale, offset = np.polyfit(values, points[:, place], 1)  # the same scale for all three lines
        assert scale > 0
        assert np.abs(scale * values + offset - points[:, place]).max() < 1e-3
    assert line(drawn["loss mid"], "h0")[:, 1] == pytest.approx(
        np.polyval(np.polyfit(LOSSES["mid"], line(drawn["loss mid"], "h0")[:, 1], 1), LOSSES["mid"]), abs=1e-3
    )
    assert len(line(drawn["loss quantisation"], "soft")) == 4  # NaN is not drawn


def test_the_table_and_the_facts(tmp_path: Path) -> None:
    setup = [("backbone", "smallnet"), ("odd", "<b>&")]
    page = write_training_report(report(), tmp_path, title="How <i> was trained", setup=setup).read_text()
    heads = re.findall(r'<th scope="col">([^<]+)</th>', page)
    assert heads == ["mid", "quantisation", "mAP mid", "mAP fine", "mean mAP", "seconds"]
    rows = re.findall(r'<tr><th scope="row">(\d+)</th>(.*?)</tr>', page)
    assert [number for number, _ in rows] == ["1", "2", "3", "4", "5"]
    cells = [re.sub("<.*?>", " ", row).split() for _, row in rows]
    assert cells[0] == ["4.000", "0.500", "0.200", "0.100", "0.150", "12.0"]
    assert cells[1][1] == "–"
    assert ["<b>" in row for _, row in rows] == [False, False, False, True, False]
    for told in ("1,234", "10 classes", "5, kept: 4", "smallnet", "&lt;b&gt;&amp;", "How &lt;i&gt; was trained"):
        assert told in page
    assert not re.search(r"<script|https?:(?!//www\.w3\.org)|<link", page)


def test_short_and_unjudged_trainings(tmp_path: Path) -> None:
    page = write_training_report(report(1, best_epoch=1, labels={}), tmp_path, title="t").read_text()
    assert len(line(plots(page)["loss mid"], "h0")) == 1
    assert "clusters in their place" in page
    bare = report(2, best_epoch=2, history=({"epoch": 1.0, "mid": 1.0, "seconds": 1.0},) * 2)
    page = write_training_report(bare, tmp_path, title="t").read_text()
    assert list(plots(page)) == ["loss mid"]
    assert "Held-out" not in page
    (tmp_path / "file").write_text("")
    with pytest.raises(QueryError, match="cannot be made"):
        write_training_report(report(), tmp_path / "file", title="t")
