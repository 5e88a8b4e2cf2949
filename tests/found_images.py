"""The images that sources hold, as ``mgm encode`` finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike

from mg_milvus.bulk.dataset import Shard
from mg_milvus.bulk.sources import files_of_shard, images_in
from mg_milvus.images.discover import Found, Tally
from mg_milvus.records import Failure


def images(
    sources: Sequence[str | PathLike[str]], shard: Shard, on_failure: Callable[[Failure], None],
    *, allow_private: bool = False, passed: Tally | None = None,
) -> Iterator[Found]:  # fmt: skip
    """The images of one shard, those in tars, zips and tables included."""
    passed = Tally() if passed is None else passed
    files = files_of_shard(sources, shard, on_failure, allow_private=allow_private, passed=passed)
    return images_in(files, on_failure, passed)
