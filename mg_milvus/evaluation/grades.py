"""Which pictures are relevant to which queries, by their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.errors import LabelError
from mg_milvus.evaluation.protocols import Parts
from mg_milvus.metrics import NOT_A_CANDIDATE, SAME_CLASS, relevance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mg_milvus.evaluation.scoring import RelevanceOf
    from mg_milvus.labels import Level


def graded(parts: Parts) -> RelevanceOf:
    """Relevance of the database to slices of the queries; a picture is no candidate for itself."""
    pictures = parts.pictures
    if pictures.classes is None:
        raise LabelError("there are no labels to evaluate by; label the pictures by folders or with a table")
    classes = _labels(pictures.classes)
    has_groups = pictures.groups is not None and pictures.groups is not pictures.classes
    groups = _labels(pictures.groups) if has_groups and pictures.groups is not None else None
    database, queries = parts.database, parts.queries
    of_database = classes[database], None if groups is None else groups[database]
    column = np.searchsorted(database, queries)
    own = (column < len(database)) & (database[np.minimum(column, len(database) - 1)] == queries)

    def relevance_of(part: slice) -> NDArray[np.uint8]:
        asked = queries[part]
        grades = relevance(classes[asked], of_database[0], None if groups is None else groups[asked], of_database[1])
        rows = np.flatnonzero(own[part])
        grades[rows, column[part][rows]] = NOT_A_CANDIDATE
        return grades

    return relevance_of


def _labels(level: Level) -> NDArray[Any]:
    return level.one_hot() if level.several else level.ids()


def with_something_to_find(parts: Parts) -> tuple[Parts, int]:
    """The queries that have a picture of their class in the database, and the number of the others."""
    relevance_of = graded(parts)
    found = np.concatenate([
        (relevance_of(slice(row, row + 64)) == SAME_CLASS).any(axis=1) for row in range(0, len(parts.queries), 64)
    ])  # fmt: skip
    if not found.any():
        raise LabelError(
            "no query has another picture of its class in the database; expected classes of two or more pictures, and "
            "the same names of classes on both sides"
        )
    return Parts(parts.about, parts.pictures, parts.queries[found], parts.database), int((~found).sum())
