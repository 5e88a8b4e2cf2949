"""``evaluate``: metrics of image search on a labelled folder."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import QueryError, SchemaError
from mg_milvus.evaluation.copies import COPIES, evaluate_copies
from mg_milvus.evaluation.encoded import Setup, encode_labelled, heads_text, with_heads
from mg_milvus.evaluation.protocols import SplitOptions, read_split
from mg_milvus.evaluation.report import Details, Evaluation
from mg_milvus.evaluation.scoring import (
    FLOAT,
    KS,
    SMOOTHED,
    ScoringOptions,
    code_metrics,
    compare,
    curve_ranks,
    float_rankings,
    graded,
    recipes_of,
    score_all,
    score_codes,
    smoothed_rankings,
    with_relevant_images,
)
from mg_milvus.evaluation.through_index import Place, depth_of, evaluate_index
from mg_milvus.ingest.fit_heads import SAMPLE_SIZE
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.schema.models import Granularity, Schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mg_milvus.config import MilvusConfig
    from mg_milvus.encoder.base import Encoder, Features
    from mg_milvus.evaluation.protocols import Split
    from mg_milvus.records import Failure, Progress

    PathLike = str | os.PathLike[str]


def evaluate(  # noqa: PLR0913 - public: keyword options of the command
    folder: PathLike,
    *,
    queries: PathLike | None = None,
    protocol: str = "leave-one-out",
    encoder: Encoder | PathLike | None = None,
    schema: Schema | PathLike | None = None,
    bits: Mapping[str, int] | None = None,
    heads: str | None = None,
    labels: PathLike | None = None,
    share: float = 0.1,
    seed: int = 0,
    sample: int = SAMPLE_SIZE,
    ks: Sequence[int] = KS,
    through_index: bool = False,
    milvus: MilvusConfig | None = None,
    depth: int | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    copies: int = COPIES,
    curves: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Evaluate an encoder on labelled images, used as an ingest of the database would use it.

    Args:
        folder: the labelled images (``labels.read_labelled``), or the database alone.
        queries: a folder of labelled queries.
        protocol: ``leave-one-out``, ``split``, ``cifar10-1``, ``cifar10-2`` or ``copies``; see the modules
            ``protocols`` and ``copies``.
        encoder: ``builtin``, an encoder file or an ``Encoder``; default: the schema's.
        schema: preset, file or ``Schema``; default: the default schema.
        bits: granularity -> code length, instead of the schema's granularities.
        heads: ``adapt``: hash heads fitted on a sample of the database, which in ``leave-one-out`` is the queries, too,
            but never on labels; ``fixed``: the encoder's own; default: the schema's.
        labels: a table of labels, instead of folders.
        share: of each class that ``split`` takes for queries.
        seed: of the choice of queries.
        sample: images that the heads are fitted on, at most.
        ks: ranks of P@k, R@k and NDCG@k.
        through_index: also ingest the database into a collection and query it; ``through_index`` of the metrics.
        milvus: where that collection is created, and dropped again; default: a temporary Milvus Lite file.
        depth: candidates retrieved by each granularity there; default: the whole database, up to Milvus' 16,384.
        device: where the network runs.
        settings: batch size, threads, largest image.
        copies: images that ``copies`` edits and queries, at most.
        curves: also score at many ranks, for the curves of a report.
        progress: called after each batch.

    Raises:
        ImageError: a folder is not there or has no readable image.
        LabelError: there are no labels, or one class only, or no query has anything to find.
        QueryError: an argument is not one of these.
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
    if through_index and sample != SAMPLE_SIZE:
        raise QueryError(f"an ingest fits the heads on {SAMPLE_SIZE} images, so a sample of {sample} has no index")
    failed: list[Failure] = []
    if protocol == "copies":
        if queries is not None or labels is not None or through_index:
            raise QueryError("copies makes its own queries, needs no labels and asks in memory; leave those out")
        setup = Setup(_encoder(encoder, schema, device), schema, sample, settings, progress)
        metrics, failures = evaluate_copies(folder, setup, copies, seed)
        return Evaluation(metrics, schema, failures)

    split = read_split(folder, SplitOptions(protocol, queries, labels, share, seed), failed.append)
    if through_index:
        depth_of(Place(milvus, depth), len(split.database), ks)
    # Known from the labels alone, so said before the images are encoded.
    with_relevant_images(split)
    setup = Setup(_encoder(encoder, schema, device), schema, sample, settings, progress)
    to_ingest = [split.images.images[row] for row in split.database]
    encoded = encode_labelled(split.images, setup.encoder, settings, progress)
    failed += encoded.failures
    split = split.without(encoded.broken)
    database_features = {name: values[split.database] for name, values in encoded.features.items()}
    fitted, fitted_on = with_heads(
        setup, database_features, [encoded.read[row] for row in split.database], to_ingest
    )  # fmt: skip
    split, alone = with_relevant_images(split)
    details, metrics = _metrics(split, encoded.features, replace(setup, encoder=fitted), ks, curves=curves)
    about = {"protocol": protocol if queries is None else "split", "about": split.about, "alone": alone}
    metrics |= about | {"heads": heads_text(fitted_on), "fingerprint": fitted.fingerprint}
    if through_index:
        metrics["through_index"] = evaluate_index(details, to_ingest, setup, Place(milvus, depth), ks)
    return Evaluation(metrics, schema, tuple(failed), details)


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


def _metrics(
    split: Split, features: Features, setup: Setup, ks: Sequence[int], *, curves: bool
) -> tuple[Details, dict[str, Any]]:
    """Score the rankings by codes and by float features; ``setup.encoder`` has its heads."""
    encoder, schema = setup.encoder, setup.schema
    database_features = {name: values[split.database] for name, values in features.items()}
    query_features = {name: values[split.queries] for name, values in features.items()}
    query_codes, database_codes = encoder.codes(query_features), encoder.codes(database_features)
    relevance_of = graded(split)
    groups = split.images.groups is not split.images.classes
    ranks = sorted({*ks, *(curve_ranks(len(split.database)) if curves else ())})
    options = ScoringOptions(ks=ranks, groups=groups, threads=setup.settings.workers, progress=setup.progress)
    scores = score_codes(query_codes, database_codes, relevance_of, recipes_of(schema), options)
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
        **code_metrics(scores, database_codes, ks),
        "float": {"granularity": best, **floats[best].as_dict(ks)}
        | {"granularities": {name: found.as_dict(ks) for name, found in floats.items()}},
        "float_smoothed": {"granularity": best, **smoothed.as_dict(ks)},
        "compared": compare(scores, {"float": floats[best], "float_smoothed": smoothed}),
        "bytes_per_image": schema.bytes_per_image,
    }
    found = {
        name: tuple(split.images.images[row] for row in rows)
        for name, rows in (("queries", split.queries), ("database", split.database))
    }
    details = Details(
        found["queries"], found["database"], query_codes, database_codes, relevance_of,
        scores | {FLOAT + name: own for name, own in floats.items()}, encoder.fingerprint,
    )  # fmt: skip
    return details, metrics
