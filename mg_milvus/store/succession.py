"""How a collection takes the place of another, whose images it holds with new codes, without a moment that loses any.

Milvus Lite neither renames collections nor has aliases, so the name ``photos`` means the collection ``photos``, or when
there is none, the refit of the lowest number that is marked as whole: ``photos_refit2`` with ``photos_refit2_whole``
beside it. A refit is marked when it is whole; from the moment at which the former collection is dropped, it has the
name. On servers it is then renamed, so that rights and other programs find it under the name; its companions first.

What is interrupted here leaves one of both collections whole under the name, and is completed by doing it again.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

from mg_milvus.schema.models import COMPANION_ENDINGS, Granularity
from mg_milvus.store import collections
from mg_milvus.store.collections import FORMAT, Column, NewCollection, own_description

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from mg_milvus.store.client import Connection


_REFIT = re.compile(r"(.+)_refit([0-9]{1,9})")
_WHOLE = "_whole"
_COLUMNS = (Column("id", "string", 64),)
_VECTOR = Granularity(name="unused", bits=8)  # Milvus requires a vector field in every collection


def base_name(collection: str) -> str:
    """The name that a collection has for people: ``photos`` for ``photos_refit2``."""
    matched = _REFIT.fullmatch(collection)
    return matched[1] if matched else collection


def refit_name(collection: str) -> str:
    """The name of the next refit of a collection: ``photos_refit2`` for ``photos``, ``photos_refit3`` for that."""
    return f"{base_name(collection)}_refit{_number(collection) + 1}"


def holder(name: str, there: Collection[str]) -> str | None:
    """The collection that has a name although none is called so, among the names of all; None without."""
    whole = [own for own in there if base_name(own) == name != own and own + _WHOLE in there]
    return min(whole, key=_number, default=None)


def names_for_people(own: Iterable[str], there: Collection[str]) -> set[str]:
    """The names that collections of images have, refits that are not whole left out; ``there``: the names of all."""
    return {base_name(one) for one in own if one == base_name(one) or one + _WHOLE in there}


def companion_of(collection: str, ending: str, there: Collection[str]) -> str:
    """The collection before whose ending a companion is found: its own, or the base of a refit that is being renamed.

    Args:
        collection: to which it belongs.
        ending: of the companion's name.
        there: the names of all collections.
    """
    base, first = base_name(collection), COMPANION_ENDINGS[0]
    has_name = base not in there and collection + _WHOLE in there
    renamed = has_name and base + first in there and collection + first not in there
    return base if renamed and collection + ending not in there else collection


def _number(collection: str) -> int:
    matched = _REFIT.fullmatch(collection)
    return int(matched[2]) if matched else 1


class Succession:
    """The places that one collection takes, or leaves."""

    def __init__(self, connection: Connection, collection: str) -> None:
        self._connection, self._client, self._timeout = connection, connection.client, connection.timeout
        self._collection, self._base = collection, base_name(collection)

    def begin(self) -> None:
        """Take back the mark of a refit, which is about to be filled."""
        self._drop(self._collection + _WHOLE, self.there())

    def take(self) -> bool:
        """Give a whole refit the name of what it was made of, and remove that with its companions.

        Returns:
            Whether there was anything to do.
        """
        there, own = self.there(), self._collection
        if own == self._base:
            return False
        former = [one for one in self._related(there) if _number(one) < _number(own)]
        lite = self._connection.engine.lite
        if lite and own + _WHOLE in there and not former:
            return False
        self._mark()
        for one in former:
            self._move_aliases(one)
            self._drop(one, there)
        if own + COMPANION_ENDINGS[0] in there:  # else those of the base are its own, renamed already
            for one in former:
                self._drop_companions(one, there)
        if not lite:
            for name in [*(own + ending for ending in COMPANION_ENDINGS), own]:
                if name in there:
                    self._rename(name, self._base + name.removeprefix(own))
            self._drop(own + _WHOLE, self.there())
        return True

    def drop_later(self) -> None:
        """Remove the refits that were begun of a collection, with their companions, and its own mark."""
        there = self.there()
        for one in self._related(there):
            if _number(one) > _number(self._collection):
                self._drop(one, there)
                self._drop_companions(one, there)
        self._drop(self._collection + _WHOLE, there)

    def there(self) -> set[str]:
        """The names of all collections."""
        return set(self._connection.call(lambda: self._client.list_collections(timeout=self._timeout)))

    def _related(self, there: Collection[str]) -> list[str]:
        """The base and its refits of which anything is there, the lowest number first."""
        endings = (*COMPANION_ENDINGS, _WHOLE)
        stems = {name.removesuffix(ending) for name in there for ending in ("", *endings) if name.endswith(ending)}
        return sorted((one for one in stems if base_name(one) == self._base), key=_number)

    def _mark(self) -> None:
        name = self._collection + _WHOLE
        text = json.dumps({"mg_milvus": FORMAT, "whole_of": self._base}, separators=(",", ":"))
        if collections.description_of(self._connection, name) is None:
            collections.create(self._connection, NewCollection(name, text, _COLUMNS, [_VECTOR]))

    def _move_aliases(self, former: str) -> None:
        """Let the aliases of the former collection stand for this one; servers drop none that has aliases."""
        if self._connection.engine.lite:
            return
        client, own = self._client, self._collection
        found = self._connection.call(lambda: client.list_aliases(former, timeout=self._timeout))
        for alias in found["aliases"]:
            self._connection.write(partial(client.alter_alias, own, alias, timeout=self._timeout))

    def _drop_companions(self, collection: str, there: Collection[str]) -> None:
        for ending in (*COMPANION_ENDINGS, _WHOLE):
            self._drop(collection + ending, there)

    def _drop(self, name: str, there: Collection[str]) -> None:
        """Drop a collection that is there and that mg-milvus has made."""
        if name in there and own_description(collections.description_of(self._connection, name) or ""):
            self._connection.write(lambda: self._client.drop_collection(name, timeout=self._timeout))

    def _rename(self, old: str, new: str) -> None:
        self._connection.write(lambda: self._client.rename_collection(old, new, timeout=self._timeout))
