"""How well images are found: every figure of the README that is about quality, in one run.

    python benchmarks/quality.py [--photographs COREL] [--hierarchy TINY_VAL] [--labelled FILE] [--json FILE]

Each folder is evaluated as ``mgm eval`` does it: hash heads adapted, without labels, to the database. In leave-one-out
that is the queries, too; the row ``split`` has heads and database of one half of each class, and queries of the other.
``smoothed`` are float features with database-side augmentation and query expansion.

- PHOTOGRAPHS holds class/image: leave-one-out mAP of the codes, the fusions and the float features; with heads fitted
  on few images and with the shipped ones; of codes of 8 to 128 bits; and recall of the originals of edited copies.
- HIERARCHY holds group/class/image: which granularity is best at what.
- ``--labelled`` is an encoder that ``mgm train`` made with the labels of HIERARCHY's training part; its codes are
  compared with unsupervised ones of the network that ships: PCA and ITQ, and the heads that an ingest fits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from result_file import write_result

from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.evaluate import evaluate
from mg_milvus.images.augment import STRENGTHS
from mg_milvus.ingest.fit_heads import FitOptions, fit_encoder
from mg_milvus.schema.models import PROFILES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHORT = (8, 16, 32, 64, 128)
SAMPLES = (50, 300)
LEVELS = ("coarse", "mid", "fine")


def table(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> None:
    wide = max(16, *(len(name) + 2 for name in rows))
    print(f"\n{title}\n{'':{wide}}" + "".join(f"{column:>13}" for column in columns))
    for name, row in rows.items():
        print(f"{name:{wide}}" + "".join(f"{row[c]:13.3f}" if c in row else f"{'':13}" for c in columns), flush=True)


def maps(figures: dict[str, Any], level: str = "map") -> dict[str, float]:
    found = {name: values[level] for name, values in (figures["granularities"] | figures["fused"]).items()}
    found |= {"float": figures["float"][level]}
    return found | {"smoothed": figures["float_smoothed"][level]} if "float_smoothed" in figures else found


def photographs(folder: Path, encoder: Any) -> dict[str, Any]:
    rows = {"adapted heads": maps(evaluate(folder, encoder=encoder).to_json())}
    rows["split"] = maps(evaluate(folder, encoder=encoder, protocol="split", share=0.5).to_json())
    for size in SAMPLES:
        rows[f"fitted on {size}"] = maps(evaluate(folder, encoder=encoder, sample=size).to_json())
    rows["shipped heads"] = maps(evaluate(folder, encoder=encoder, heads="fixed").to_json())
    rows["compact"] = maps(evaluate(folder, encoder=encoder, schema="compact").to_json())
    columns = [*LEVELS, "rank", "score", *PROFILES, "float", "smoothed"]
    table("Photographs, leave-one-out mAP", columns, rows)
    for name in ("adapted heads", "split"):
        own = rows[name]
        best, floats = max(own["rank"], own["score"]), max(own["float"], own["smoothed"])
        print(f"{name}: fused over the better float features of the same network: {best / floats:.3f}")

    curve = {}
    for bits in SHORT:
        figures = maps(evaluate(folder, encoder=encoder, bits=dict.fromkeys(LEVELS, bits)).to_json())
        curve[f"{bits} bits each"] = {name: value for name, value in figures.items() if name not in PROFILES}
    table("Photographs, leave-one-out mAP by code length", [*LEVELS, "rank", "score", "float"], curve)
    return {"map": rows, "bits": curve}


def copies(folder: Path, encoder: Any, queries: int) -> dict[str, Any]:
    figures = evaluate(folder, encoder=encoder, protocol="copies", copies=queries).to_json()["copies"]
    rows = {
        f"{edit}, {strength}": {name: values["recall@1"] for name, values in found[strength].items()}
        for edit, found in figures.items()
        for strength in STRENGTHS
    }
    table("Copies, recall@1", [*LEVELS, "instance", "rank"], rows)
    return rows


def hierarchy(folder: Path, encoder: Any, labelled: Path | None, queries: int) -> dict[str, Any]:
    figures = evaluate(folder, encoder=encoder).to_json()
    found = evaluate(folder, encoder=encoder, protocol="copies", copies=queries).to_json()
    tasks = {
        "same group, mAP": maps(figures, "map_group"),
        "same class, mAP": maps(figures),
        "this image, MRR of copies": maps(found),
    }
    table("Hierarchy: what each granularity is best at", [*LEVELS, "rank", *PROFILES], tasks)
    result: dict[str, Any] = {"tasks": tasks}
    if labelled:
        trained = load_encoder(labelled)
        learned = evaluate(folder, encoder=trained, bits=trained.bits).to_json()
        with TemporaryDirectory() as place:
            file = Path(place) / "itq.safetensors"
            fit_encoder(folder, file, FitOptions(bits=trained.bits, method="itq"))
            itq = evaluate(folder, encoder=file, bits=trained.bits).to_json()
        sides = {"itq": itq, "adaptive": figures, "labelled": learned}
        result["labelled"] = {
            f"{name}, same {level}": {side: own["granularities"][name][key] for side, own in sides.items()}
            for name, level, key in (("coarse", "group", "map_group"), ("mid", "class", "map"))
        }
        table("Hierarchy: codes that learned its labels", list(sides), result["labelled"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--hierarchy", type=Path)
    parser.add_argument("--labelled", type=Path, help="encoder trained on the labels of the hierarchy")
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--queries", type=int, default=200, help="images that are edited and asked for")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder(options.encoder)
    result: dict[str, Any] = {}
    if options.photographs:
        result = photographs(options.photographs, encoder)
        result["copies"] = copies(options.photographs, encoder, options.queries)
    if options.hierarchy:
        result["hierarchy"] = hierarchy(options.hierarchy, encoder, options.labelled, options.queries)
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
