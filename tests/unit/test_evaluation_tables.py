"""Means and deviations over seeds, and tables for papers, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mg_milvus.evaluation.report import metrics_table, setup_lines
from mg_milvus.evaluation.tables import over_seeds, paper_tables


def ranking(value: float) -> dict[str, Any]:
    return {
        "map": value, "map_interval": [value - 0.02, value + 0.02], "map_at_r": value / 2,
        "precision": {"1": value}, "recall": {}, "ndcg": {},
    }  # fmt: skip


def metrics(value: float, fingerprint: str = "abc", **more: Any) -> dict[str, Any]:
    return {
        "protocol": "split", "about": "split: 10% & a rest", "queries": 20, "database": 80, "map_at": None,
        "granularities": {"mid": {"bits": 64, **ranking(value)}, "of_mine": {"bits": 32, **ranking(0.25)}},
        "fused": {"rank": ranking(0.5)}, "float": {"granularity": "mid", **ranking(0.375)}, "alone": 0,
        "heads": "adapted on 80 images", "fingerprint": fingerprint, "bytes_per_image": 12, "failures": [],
    } | more  # fmt: skip


def test_one_seed_is_left_as_it_is() -> None:
    assert over_seeds([metrics(0.5)], [7]) == metrics(0.5) | {"seeds": [7]}


def test_several_seeds_are_means_with_deviations_by_hand() -> None:
    runs = [
        metrics(value, name, curve=[0.5, value], per_query={}) for value, name in ((0.5, "a"), (0.6, "b"), (0.7, "c"))
    ]
    found = over_seeds(runs, range(4, 7))
    mid, deviation = found["granularities"]["mid"], found["deviation"]["granularities"]["mid"]
    assert (mid["map"], deviation["map"]) == (0.6, 0.1)
    assert (mid["precision"], deviation["precision"]) == ({"1": 0.6}, {"1": 0.1})
    assert (found["curve"], found["deviation"]["curve"]) == ([0.5, 0.6], [0.0, 0.1])
    assert (mid["bits"], found["queries"], found["about"]) == (64, 20, "split: 10% & a rest")
    assert found["fingerprint"] is None
    assert (found["seeds"], [run["seed"] for run in found["runs"]]) == ([4, 5, 6], [4, 5, 6])
    assert found["runs"][1]["granularities"] == runs[1]["granularities"], "with its interval"
    assert "map_interval" not in mid
    assert "per_query" not in found
    assert found["deviation"]["fused"]["rank"]["map"] == 0
    lines = setup_lines(found)
    assert "seeds: 4, 5, 6; means and standard deviations over them" in lines
    assert "encoder: a, b, c" in lines
    row = metrics_table(found)["mid"]
    assert list(row)[:3] == ["mAP", "mAP±", "mAP@R"]
    assert (row["mAP"], row["mAP±"]) == (0.6, 0.1)


def test_a_value_that_one_run_does_not_have_has_no_mean() -> None:
    runs = [metrics(0.5, ratio=0.25), metrics(0.5, ratio=None)]
    found = over_seeds(runs, [0, 1])
    assert found["ratio"] is None
    assert "ratio" not in found["deviation"]


LATEX = r"""% protocol: split: 10% & a rest
% queries: 20
% database: 80
% seeds: 0
% encoder: abc
% hash heads: adapted on 80 images
% bytes an image: 12
\begin{tabular}{lrrr}
\toprule
 & mAP & mAP@R & P@1 \\
\midrule
mid & \textbf{0.750} [0.730, 0.770] & \textbf{0.375} & \textbf{0.750} \\
of\_mine & 0.250 [0.230, 0.270] & 0.125 & 0.250 \\
rank fusion & 0.500 [0.480, 0.520] & 0.250 & 0.500 \\
float & 0.375 [0.355, 0.395] & 0.188 & 0.375 \\
\bottomrule
\end{tabular}"""

MARKDOWN = """- protocol: split: 10% & a rest
- queries: 20
- database: 80
- seeds: 0, 1; means and standard deviations over them
- encoder: abc
- hash heads: adapted on 80 images
- bytes an image: 12

|  | mAP | mAP@R | P@1 |
| --- | ---: | ---: | ---: |
| mid | **0.800** ± 0.141 | **0.400** ± 0.071 | **0.800** ± 0.141 |
| of\\_mine | 0.250 ± 0.000 | 0.125 ± 0.000 | 0.250 ± 0.000 |
| rank fusion | 0.500 ± 0.000 | 0.250 ± 0.000 | 0.500 ± 0.000 |
| float | 0.375 ± 0.000 | 0.188 ± 0.000 | 0.375 ± 0.000 |"""


def test_latex_has_intervals_and_escapes_names() -> None:
    assert paper_tables(over_seeds([metrics(0.75)], [0]), "latex") == LATEX


def test_markdown_has_deviations() -> None:
    assert paper_tables(over_seeds([metrics(0.7), metrics(0.9)], [0, 1]), "markdown") == MARKDOWN


def test_map_up_to_a_rank_is_the_first_column() -> None:
    runs = [metrics(0.5, map_at=5000), metrics(0.7, map_at=5000)]
    for run in runs:
        for own in (*run["granularities"].values(), run["fused"]["rank"], run["float"]):
            own |= {"map_at_k": own["map"] + 0.1, "map_at_k_interval": [0.0, 1.0]}
    text = paper_tables(over_seeds(runs, [0, 1]), "latex")
    assert r" & mAP@5000 & mAP & mAP@R & P@1 \\" in text
    assert r"mid & \textbf{0.700} $\pm$ 0.141 & \textbf{0.600} $\pm$ 0.141 &" in text
    assert "0.600 [0.000, 1.000]" in paper_tables(over_seeds(runs[:1], [0]), "markdown").replace("**", "")


@pytest.mark.parametrize("form", ["latex", "markdown"])
def test_edited_copies_have_a_table_of_their_own(form: str) -> None:
    found = metrics(0.5, copies={"jpeg": {"mild": {"mid": {"recall@1": 1.0}, "rank": {"recall@1": 0.5}}}})
    text = paper_tables(over_seeds([found, found], [0, 1]), form)
    line = next(line for line in text.splitlines() if "jpeg, mild" in line)
    assert line.replace("**", "").replace(r"$\pm$", "±") in {
        "| jpeg, mild | 1.000 ± 0.000 | 0.500 ± 0.000 |", r"jpeg, mild & 1.000 ± 0.000 & 0.500 ± 0.000 \\",
    }  # fmt: skip
