"""``evaluate``: metrics of image search on a labelled folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import ImageError, QueryError, SchemaError
from mg_milvus.evaluation.copies import COPIES, evaluate_copies
from mg_milvus.evaluation.encoded import Setup, encode_labelled, heads_text, with_heads
from mg_milvus.evaluation.outputs import RunFolder, configuration_of, environment_of, images_digest
from mg_milvus.evaluation.protocols import DRAWN, PUBLISHED, SEEN, SplitOptions, read_split
from mg_milvus.evaluation.report import MOST_PER_QUERY, Details, Evaluation
from mg_milvus.evaluation.scoring import (
    FLOAT,
    KS,
    SMOOTHED,
    ScoringOptions,
    code_metrics,
    compare,
    curve_ranks,
    curves_of,
    float_rankings,
    graded,
    recipes_of,
    score_all,
    score_codes,
    smoothed_rankings,
    with_relevant_images,
)
from mg_milvus.evaluation.tables import over_seeds
from mg_milvus.evaluation.through_index import Place, depth_of, evaluate_index
from mg_milvus.ingest.fit_heads import SAMPLE_SIZE
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.schema.models import Granularity, Schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mg_milvus.config import MilvusConfig
    from mg_milvus.encoder.base import Encoder, Features
    from mg_milvus.evaluation.encoded import Encoded
    from mg_milvus.evaluation.protocols import Split
    from mg_milvus.images.discover import Found
    from mg_milvus.records import Failure, Progress

    PathLike = str | os.PathLike[str]


def evaluate(  # noqa: PLR0913 - public: keyword options of the command
    folder: PathLike,
    *,
    queries: PathLike | None = None,
    protocol: str = "leave-one-out",
    lists: Sequence[PathLike] = (),
    encoder: Encoder | PathLike | None = None,
    schema: Schema | PathLike | None = None,
    bits: Mapping[str, int] | None = None,
    heads: str | None = None,
    labels: PathLike | None = None,
    share: float = 0.1,
    seen: PathLike | float = SEEN,
    seed: int = 0,
    seeds: int = 1,
    sample: int = SAMPLE_SIZE,
    ks: Sequence[int] = KS,
    map_at: int | None = None,
    through_index: bool = False,
    milvus: MilvusConfig | None = None,
    depth: int | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    copies: int = COPIES,
    curves: bool = False,
    run: PathLike | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Evaluate an encoder on labelled images, used as an ingest of the database would use it.

    Args:
        folder: the labelled images (``labels.read_labelled``), or the database alone.
        queries: a folder of labelled queries.
        protocol: one of ``protocols.PROTOCOLS``; see the modules ``protocols`` and ``copies``.
        lists: split lists as papers publish them, ``database,test`` or ``train,database,test``; see ``lists``.
        encoder: ``builtin``, an encoder file or an ``Encoder``; default: the schema's.
        schema: preset, file or ``Schema``; default: the default schema.
        bits: granularity -> code length, instead of the schema's granularities.
        heads: ``adapt``: hash heads fitted on a sample of the training list or the seen classes, where there are such,
            else of the database, which in ``leave-one-out`` is the queries, too, but never on labels; ``fixed``: the
            encoder's own; default: the schema's.
        labels: a table of labels, instead of folders.
        share: of each class that ``split`` and ``zero-shot`` take for queries.
        seen: the share of the classes that ``zero-shot`` learns from, or a text file of their names.
        seed: of the choice of queries and of seen classes.
        seeds: so many seeds, from ``seed`` on: metrics are their means, with ``deviation``.
        sample: images that the heads are fitted on, at most.
        ks: ranks of P@k, R@k and NDCG@k.
        map_at: the last rank of ``map_at_k``; default: that of the protocol's source, if any.
        through_index: also ingest the database into a collection and query it; ``through_index`` of the metrics.
        milvus: where that collection is created, and dropped again; default: a temporary Milvus Lite file.
        depth: candidates retrieved by each granularity there; default: the whole database, up to Milvus' 16,384.
        device: where the network runs.
        settings: batch size, threads, largest image.
        copies: images that ``copies`` edits and queries, at most.
        curves: also score at many ranks and at every Hamming radius: ``curves`` of the metrics.
        run: a folder to keep configuration, versions, metrics and average precisions in; where it holds the same
            configuration, the metrics are compared with those in it, and it stays as it is: ``run`` of the metrics.
        progress: called after each batch.

    Raises:
        ImageError: a folder is not there or has no readable image.
        LabelError: there are no labels, or one class only, or no query has anything to find.
        QueryError: an argument is not one of these, or ``run`` holds another configuration.
        SchemaError: the schema, or one of ``bits``, cannot be.
    """
    schema = with_lengths(
        schema if isinstance(schema, Schema) else Schema.load(str(schema)) if schema else Schema(), bits
    )
    if heads is not None:
        if heads not in {"adapt", "fixed"}:
            raise QueryError(f"heads is '{heads}', expected adapt or fixed")
        schema = schema.model_copy(update={"encoder": schema.encoder.model_copy(update={"heads": heads})})
    settings = settings or Settings()
    if not ks or min(ks) < 1:
        raise QueryError(f"the ranks to report are {list(ks)}, expected one or more, from 1 up")
    if map_at is None and protocol in PUBLISHED:
        map_at = PUBLISHED[protocol].map_at
    if map_at is not None and map_at < 1:
        raise QueryError(f"the last rank of mAP is {map_at}, expected 1 or more, such as 5000")
    if seeds < 1 or (seeds > 1 and (protocol not in DRAWN or queries is not None or lists)):
        drawn = f"{', '.join(DRAWN)} without queries or lists of one's own"
        raise QueryError(f"there are {seeds} seeds, expected 1, or more where a seed draws something: {drawn}")
    if through_index and seeds > 1:
        raise QueryError(f"an index is asked with one seed, not {seeds}; leave --through-index or --seeds out")
    if through_index and sample != SAMPLE_SIZE:
        raise QueryError(f"an ingest fits the heads on {SAMPLE_SIZE} images, so a sample of {sample} has no index")
    failed: list[Failure] = []
    numbers = range(seed, seed + seeds)
    if protocol == "copies":
        if through_index or lists or any(value is not None for value in (queries, labels, map_at, run)):
            raise QueryError(
                "copies makes its own queries, needs no labels, has whole rankings, asks in memory and keeps no run "
                "folder; leave those out"
            )
        setup = Setup(_encoder(encoder, schema, device), schema, sample, settings, progress)
        found = [evaluate_copies(folder, setup, copies, number) for number in numbers]
        failures = dict.fromkeys(failure for _, own in found for failure in own)
        return Evaluation(over_seeds([metrics for metrics, _ in found], numbers), schema, tuple(failures))

    options = SplitOptions(protocol, queries, lists, labels, share, seen, seed)
    splits = [read_split(folder, options, failed.append)]
    splits += [read_split(folder, replace(options, seed=number)) for number in numbers[1:]]
    if any(split.images != splits[0].images for split in splits):
        raise ImageError(f"the images of {os.fspath(folder)!r} changed while they were listed; try again")
    if through_index:
        if splits[0].training is not None:
            raise QueryError(
                "an ingest fits the heads on the database, here other images are for that; leave --through-index out"
            )
        depth_of(Place(milvus, depth), len(splits[0].database), ks)
    # Known from the labels alone, so said before the images are encoded.
    for split in splits:
        with_relevant_images(split)
    setup = Setup(_encoder(encoder, schema, device), schema, sample, settings, progress)
    kept = None
    if run is not None:
        asked = {
            "protocol": protocol, "share": share, "seen": splits[0].seen, "seeds": list(numbers), "sample": sample,
            "ks": list(ks), "map_at": map_at, "curves": curves, "images": images_digest(splits[0], folder),
        }  # fmt: skip
        kept = RunFolder(Path(run), asked | configuration_of(setup), os.fspath(folder))
        kept.check()
    encoded = encode_labelled(splits[0].images, setup.encoder, settings, progress)
    failed += encoded.failures
    fit_on = [[split.images.images[row] for row in split.to_fit] for split in splits]
    to_ingest = [splits[0].images.images[row] for row in splits[0].database]
    splits = [split.without(encoded.broken) for split in splits]
    # At the same ranks for every seed, so that curves have a mean.
    at = curve_ranks(min(len(split.database) for split in splits)) if curves else ()
    ranks = _Ranks(tuple(ks), map_at, at)
    runs = [_run(split, images, encoded, setup, ranks) for split, images in zip(splits, fit_on, strict=True)]
    about = {"protocol": "split" if protocol == "leave-one-out" and (queries is not None or lists) else protocol}
    metrics = over_seeds([about | own for own, _ in runs], numbers)
    details = tuple(own for _, own in runs)
    if through_index:
        metrics["through_index"] = evaluate_index(details[0], to_ingest, setup, Place(milvus, depth), ks)
    evaluation = Evaluation(metrics, schema, tuple(failed), details)
    if kept is None:
        return evaluation
    result = kept.keep(evaluation, environment_of(folder, queries, labels, *lists))
    return replace(evaluation, metrics=metrics | {"run": result})


@dataclass(frozen=True, slots=True)
class _Ranks:
    """Ranks of P@k, R@k and NDCG@k; the last rank of mAP@k; ranks of the curves, none without curves."""

    ks: tuple[int, ...]
    map_at: int | None
    curves: tuple[int, ...]


def _run(
    split: Split, fit_on: Sequence[Found], encoded: Encoded, setup: Setup, ranks: _Ranks
) -> tuple[dict[str, Any], Details]:
    """Fit the heads on a sample of ``fit_on`` and score the rankings of one split."""
    features = {name: values[split.to_fit] for name, values in encoded.features.items()}
    fitted, fitted_on = with_heads(setup, features, [encoded.read[row] for row in split.to_fit], fit_on)
    split, alone = with_relevant_images(split)
    details, metrics = _metrics(split, encoded.features, replace(setup, encoder=fitted), ranks)
    metrics |= {"about": split.about, "alone": alone, "heads": heads_text(fitted_on), "fingerprint": fitted.fingerprint}
    if split.seen is not None:
        metrics["seen"] = list(split.seen)
    return metrics, details


def _encoder(given: Encoder | PathLike | None, schema: Schema, device: str) -> Encoder:
    source = schema.encoder.name if given is None else given
    found = load_encoder(os.fspath(source), device=device) if isinstance(source, str | os.PathLike) else source
    found.check(schema.bits)
    if dict(found.bits) != dict(schema.bits):
        found.with_bits(schema.bits)  # trained heads of another length are refused before images are encoded
    return found


def with_lengths(schema: Schema, bits: Mapping[str, int] | None) -> Schema:
    """The schema with these granularities and code lengths instead; weights stay where a granularity does.

    Raises:
        SchemaError: one is no code length.
    """
    if not bits:
        return schema
    for name, length in bits.items():
        if length % 8 or not 8 <= length <= 4096:
            raise SchemaError(f"{name} has {length} bits, expected a multiple of 8 from 8 to 4096")
    granularities = tuple(
        Granularity(name=name, bits=length, weight=schema.weights.get(name, 1.0)) for name, length in bits.items()
    )
    return schema.model_copy(update={"granularities": granularities})


def _metrics(split: Split, features: Features, setup: Setup, ranks: _Ranks) -> tuple[Details, dict[str, Any]]:
    """Score the rankings by codes and by float features; ``setup.encoder`` has its heads."""
    encoder, schema, ks = setup.encoder, setup.schema, ranks.ks
    database_features = {name: values[split.database] for name, values in features.items()}
    query_features = {name: values[split.queries] for name, values in features.items()}
    query_codes, database_codes = encoder.codes(query_features), encoder.codes(database_features)
    relevance_of = graded(split)
    options = ScoringOptions(
        ks=sorted({*ks, *ranks.curves}), map_at=ranks.map_at, radii=dict(schema.bits) if ranks.curves else {},
        groups=split.images.groups is not split.images.classes, threads=setup.settings.workers, progress=setup.progress,
    )  # fmt: skip
    scores = score_codes(query_codes, database_codes, relevance_of, recipes_of(schema), options)
    options = replace(options, radii={})
    used = {name: values for name, values in database_features.items() if name in schema.bits}
    floats = score_all(
        (len(split.queries), len(split.database)), float_rankings(query_features, used), relevance_of,
        "scoring features", options,
    )  # fmt: skip
    best = max(floats, key=lambda name: floats[name].ranking.map)
    smoothed = score_all(
        (len(split.queries), len(split.database)), smoothed_rankings(query_features[best], used[best]), relevance_of,
        "scoring smoothed features", options,
    )[SMOOTHED]  # fmt: skip
    metrics = {
        "queries": len(split.queries),
        "database": len(split.database),
        "map_at": ranks.map_at,
        **code_metrics(scores, database_codes, ks),
        "float": {"granularity": best, **floats[best].as_dict(ks)}
        | {"granularities": {name: found.as_dict(ks) for name, found in floats.items()}},
        "float_smoothed": {"granularity": best, **smoothed.as_dict(ks)},
        "compared": compare(scores, {"float": floats[best], "float_smoothed": smoothed}),
        "bytes_per_image": schema.bytes_per_image,
    }
    scores |= {FLOAT + name: own for name, own in floats.items()}
    if ranks.curves:
        metrics["curves"] = curves_of(scores, ranks.curves)
    details = Details(split, query_codes, database_codes, relevance_of, scores, encoder.fingerprint)
    metrics["per_query"] = details.per_query() if len(split.queries) <= MOST_PER_QUERY else None
    for name, own in metrics["granularities"].items():
        own["digest"] = details.digest(name)
    return details, metrics
