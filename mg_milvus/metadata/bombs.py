"""Small Parquet files that unfold to gigabytes: told by what a file says of its columns, before any is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_SMALL = 16 << 20
"""Bytes that a column of a row group may unfold to, however few it comes from."""
_RATIO = 200
"""So much more than is in the file may come out of it beyond that; text has 5 to 30."""
_ROOM = 128 << 20
"""Bytes of the rows that are in memory together."""


def rows_at_once(found: Any, lengths: Mapping[str, int], most: int) -> int:
    """How many rows to read together, so that they fit into memory.

    Args:
        found: pyarrow's metadata of the file.
        lengths: the columns that are read, and the values of each cell; 1 for what is no list.
        most: rows, where they are small.

    Raises:
        ValueError: one of the columns unfolds to more than it can honestly hold.
    """
    largest = 1
    for group in map(found.row_group, range(found.num_row_groups)):
        dictionaries = 0
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            if name not in lengths:
                continue
            if column.num_values > group.num_rows * lengths[name]:
                raise ValueError(f"the column {name!r} has {column.num_values:,} values in {group.num_rows:,} rows")
            folded, unfolded = column.total_compressed_size, column.total_uncompressed_size
            if unfolded > max(_SMALL, _RATIO * folded):
                raise ValueError(f"the column {name!r} would unfold from {folded:,} bytes to {unfolded:,}")
            if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
                dictionaries += unfolded  # every row may be a copy of all that is in it
        largest = max(largest, dictionaries)
    return max(1, min(most, _ROOM // largest))
