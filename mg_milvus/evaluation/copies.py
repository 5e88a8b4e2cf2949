"""The protocol ``copies``: whether the original of an edited image is found.

Every image of a folder is in the database; edited versions of some, one edit at a time, are the queries. The
rank of the original is the worst inside its tie, so a tie with another image counts as missed by recall@1. One
image is relevant to a query, so ``map`` is the mean reciprocal rank. Labels are not looked at. As in a query, the
edited image is searched with by its real codes, and by the profile ``instance`` with views.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import in_steps, weighted_hamming
from mg_milvus.errors import ImageError
from mg_milvus.evaluation.encoded import Setup, encode_labelled, heads_text, with_heads
from mg_milvus.evaluation.labels import Labelled
from mg_milvus.evaluation.scoring import FLOAT, FUSED, float_rankings, health_metrics, recipes_of
from mg_milvus.images.augment import AUGMENTATIONS, STRENGTHS
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import discover, text_path
from mg_milvus.records import Failure, Progress
from mg_milvus.schema.models import FINE
from mg_milvus.search.fusion import Fusion, fuse
from mg_milvus.search.query_image import prepared_views

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from mg_milvus.codes import Codes
    from mg_milvus.encoder.base import Encoder, Features, Pixels
    from mg_milvus.evaluation.scoring import Recipe
    from mg_milvus.images.discover import Found
    from mg_milvus.schema.models import Schema

    Version = tuple[str, str]
    Inputs = tuple[Pixels, ...]
    """Of the encoder: an edited version, and the views of it."""
    Ranks = dict[Version, dict[str, list[int]]]

COPIES = 200
"""Images that are edited and queried, at most."""
CUTS = (1, 10)
AT_ONCE = 8
"""Originals held in memory at a time, in full size."""


@dataclass(frozen=True, slots=True)
class _Database:
    """The originals: codes and features by granularity, and how to fuse them."""

    codes: Mapping[str, Codes]
    features: Features
    schema: Schema


def evaluate_copies(
    folder: str | os.PathLike[str],
    setup: Setup,
    most: int = COPIES,
    seed: int = 0,
) -> tuple[dict[str, Any], tuple[Failure, ...]]:
    """Ask for edited versions of the images of a folder.

    Args:
        folder: all its images are the database.
        setup: the encoder, whose heads become those of an ingest, the schema and the settings.
        most: images queried, at most; they are drawn at random.
        seed: of that draw.

    Returns:
        The metrics in the stable form, with ``copies``: edit -> strength -> ranking -> recall@1, recall@10; and the
        images that could not be read or edited.

    Raises:
        ImageError: there are fewer than two readable images.
    """
    schema, settings, progress = setup.schema, setup.settings, setup.progress
    failed: list[Failure] = []
    found = tuple(sorted(discover([folder], failed.append), key=lambda image: image.path))
    encoded = encode_labelled(Labelled(found, None, None), setup.encoder, settings, progress)
    failed += encoded.failures
    images = encoded.labelled.images
    if len(images) < 2:
        raise ImageError(f"there is one readable image in {folder}, expected at least two; it would always be found")
    fitted, fitted_on = with_heads(setup, encoded.features, encoded.read, found)
    features = {name: encoded.features[name] for name in schema.bits}
    database = _Database(fitted.codes(features), features, schema)
    queries = np.sort(np.random.default_rng(seed).permutation(len(images))[:most])
    ranks: Ranks = defaultdict(lambda: defaultdict(list))
    with ThreadPoolExecutor(settings.workers, "mgm-edit") as pool:
        for start in range(0, len(queries), AT_ONCE):
            rows = queries[start : start + AT_ONCE]
            originals = [images[row] for row in rows]
            versions = list(pool.map(lambda own: _versions(own, fitted, settings.max_pixels), originals))
            failed += [failure for _, failures in versions for failure in failures]
            flat = [(row, *version) for row, (made, _) in zip(rows, versions, strict=True) for version in made]
            _count(flat, fitted, database, ranks)
            if progress:
                progress(Progress("querying edited copies", start + len(rows), len(queries), len(failed)))
    every = {
        ranking: [rank for own in ranks.values() for rank in own[ranking]] for ranking in next(iter(ranks.values()))
    }
    floats = {name: _summary(every[FLOAT + name]) for name in schema.bits}
    best = max(floats, key=lambda name: float(floats[name]["map"]))
    codes = health_metrics(database.codes)
    metrics = {
        "queries": len(queries),
        "database": len(images),
        "granularities": {name: own | _summary(every[name]) for name, own in codes["granularities"].items()},
        "fused": {name: _summary(every[FUSED + name]) for name in recipes_of(schema)},
        "float": {"granularity": best, **floats[best], "granularities": floats},
        "copies": {
            edit: {
                strength: {name.removeprefix(FUSED): _recalls(own) for name, own in ranks[edit, strength].items()}
                for strength in STRENGTHS
                if (edit, strength) in ranks
            }
            for edit in AUGMENTATIONS
        },
        "collisions": codes["collisions"],
        "bytes_per_image": schema.bytes_per_image,
        "protocol": "copies",
        "about": f"copies: {len(queries)} images, each in {len(ranks)} edited versions, against all",
        "heads": heads_text(fitted_on),
        "fingerprint": fitted.fingerprint,
    }
    return metrics, tuple(failed)


def _versions(
    original: Found, encoder: Encoder, max_pixels: int | None
) -> tuple[list[tuple[Version, Inputs]], list[Failure]]:
    """The edited versions of an image, ready for the encoder, and those that cannot be made."""
    try:
        with opening(text_path(original.path), max_pixels=max_pixels) as decoded:
            return _edited(decoded.image, original.path, encoder)
    except ImageError as error:
        return [], [Failure(original.path, str(error))]


def _edited(image: Image.Image, path: str, encoder: Encoder) -> tuple[list[tuple[Version, Inputs]], list[Failure]]:
    made: list[tuple[Version, Inputs]] = []
    failures: list[Failure] = []
    for name, edit in AUGMENTATIONS.items():
        for strength in STRENGTHS:
            try:
                edited = edit.apply(image, strength)
                made.append(((name, strength), (encoder.prepare(edited), *prepared_views(encoder, edited))))
            except ImageError as error:
                failures.append(Failure(path, f"{name}, {strength}: {error}"))
    return made, failures


def _count(
    versions: Sequence[tuple[int, Version, Inputs]],
    encoder: Encoder,
    database: _Database,
    ranks: Ranks,
) -> None:
    """Add the rank of each version's original, in every ranking."""
    if not versions:
        return
    inputs = [pixels for *_, own in versions for pixels in own]
    features = encoder.features(inputs)
    asked = {name: in_steps(values) for name, values in encoder.real_codes(features).items()}
    every = {name: weighted_hamming(values, database.codes[name]) for name, values in asked.items()}
    every = {name: values.reshape(len(versions), -1, values.shape[1]) for name, values in every.items()}
    whole = slice(None, None, len(versions[0][2]))
    features = {name: features[name][whole] for name in database.features}
    bits, recipes = database.schema.bits, recipes_of(database.schema)
    nothing = np.empty((0, 0), np.uint8)
    cosines = dict(float_rankings(features, database.features)(slice(None), nothing))
    for place, (row, version, _) in enumerate(versions):
        distances = {name: values[place, 0] for name, values in every.items()}
        viewed = {
            name: values[place].min(axis=0) if name == FINE else values[place, 0] for name, values in every.items()
        }
        rankings: dict[str, NDArray[Any]] = dict(distances)
        for name, recipe in recipes.items():
            rankings[FUSED + name] = _fused(viewed if name == "instance" else distances, bits, recipe)
        rankings |= {FLOAT + name: values[place] for name, values in cosines.items()}
        for name, values in rankings.items():
            ranks[version][name].append(_worst_rank(values, row))


def _fused(distances: Mapping[str, NDArray[Any]], bits: Mapping[str, int], recipe: Recipe) -> NDArray[np.float64]:
    """Minus the fused scores (n,), so that smaller is nearer."""
    ids = [f"{row:09}" for row in range(len(next(iter(distances.values()))))]
    method = Fusion(recipe.method, recipe.rrf_k)
    return -np.round(fuse(ids, distances, bits=bits, weights=recipe.weights, fusion=method).scores, 12)


def _worst_rank(distances: NDArray[Any], row: int) -> int:
    """The rank of a row, from 1, behind all that are as near as it is."""
    return int((distances <= distances[row]).sum())


def _recalls(ranks: Sequence[int]) -> dict[str, float]:
    return {f"recall@{k}": round(float(np.mean(np.array(ranks) <= k)), 6) for k in CUTS}


def _summary(ranks: Sequence[int]) -> dict[str, Any]:
    recall = {str(k): round(float(np.mean(np.array(ranks) <= k)), 6) for k in CUTS}
    return {"map": round(float(np.mean(1 / np.array(ranks))), 6), "recall": recall}
