"""Tags that people give to images: a field of the rows, added to the collection when the first tag is given."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from mg_milvus.errors import QueryError
from mg_milvus.schema.models import ExtraField
from mg_milvus.schema.tags import USER_TAGS, USER_TAGS_BYTES, check_user_tag, join_tags, split_tags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mg_milvus.session import Session
    from mg_milvus.store.base import Row

_ROWS_A_CALL = 500
_changing = threading.Lock()
"""Rows are read, changed and written whole: two changes at once would lose one."""


def tag_rows(session: Session, ids: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> int:
    """Add tags to rows, and remove some, whatever their case; the number of rows that changed.

    A row is written whole, with its codes and all fields; its regions stay.

    Raises:
        QueryError: a tag is none, there is nothing to do, or an image would have too many.
    """
    added = [check_user_tag(tag) for tag in add]
    removed = {check_user_tag(tag).casefold() for tag in remove}
    if not added and not removed:
        raise QueryError("there is no tag to add or to remove; give at least one")
    session.refresh()
    schema, store = session.schema, session.store
    if USER_TAGS not in {field.name for field in schema.fields}:
        if not added:
            return 0
        session.add_fields([ExtraField(name=USER_TAGS, type="string", max_length=USER_TAGS_BYTES)])
    changed = 0
    with _changing:
        for start in range(0, len(ids), _ROWS_A_CALL):
            rows = store.fetch(ids[start : start + _ROWS_A_CALL], tuple(schema.bits)).values()
            new = [after for row in rows if (after := _tagged(row, added, removed)) is not row]
            if new:
                store.upsert(new)
            changed += len(new)
    return changed


def _tagged(row: Row, added: Sequence[str], removed: set[str]) -> Row:
    before = split_tags(row.fields.get(USER_TAGS))
    tags = {tag.casefold(): tag for tag in before if tag.casefold() not in removed}
    for tag in added:
        tags.setdefault(tag.casefold(), tag)
    after = list(tags.values())
    if after == before:
        return row
    joined = join_tags(after)
    if len(joined.encode()) > USER_TAGS_BYTES:
        raise QueryError(
            f"the tags of {row.path} would have {len(joined.encode()):,} bytes, at most {USER_TAGS_BYTES:,} fit: "
            "remove some first"
        )
    return replace(row, fields={**row.fields, USER_TAGS: joined or None})
