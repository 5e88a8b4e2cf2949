"""What the figures of an evaluation were made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.codes import Codes
    from mg_milvus.evaluation.scoring import RelevanceOf, Scores
    from mg_milvus.images.discover import Found


@dataclass(frozen=True, slots=True)
class Details:
    """What the figures were made of, for a report or for the same questions to an index.

    Attributes:
        queries: pictures asked, in the order of the average precisions in ``scores``.
        database: pictures searched.
        query_codes: granularity -> (q, bits / 8).
        database_codes: granularity -> (n, bits / 8).
        relevance_of: slice of the queries -> (q', n) uint8.
        scores: name of the ranking -> its scores; fused ones as ``fused:NAME``, of features as ``float:NAME``.
        fingerprint: of the encoder with its heads.
    """

    queries: tuple[Found, ...]
    database: tuple[Found, ...]
    query_codes: Mapping[str, Codes]
    database_codes: Mapping[str, Codes]
    relevance_of: RelevanceOf
    scores: Mapping[str, Scores]
    fingerprint: str
