"""The schema of a collection: its codes, fields, fusion and storage, as frozen pydantic models; windows of regions.

Region ``r`` of every image is window ``r``: scale by scale as the schema lists them, within a scale from top to bottom
and left to right. A window is a share of the image, so it has the image's shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator  # noqa: TC003 - pydantic reads the annotations
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mg_milvus.schema.errors import Model, Problem, field_error, format_value, model_error
from mg_milvus.schema.tags import TAG_COLUMN, USER_TAGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mg_milvus.records import Box

PROFILES: dict[str, dict[str, float]] = {
    "category": {"coarse": 2.5, "mid": 1.0, "fine": 0.1},
    "object": {"coarse": 1.0, "mid": 3.0, "fine": 1.0},
    "instance": {"coarse": 0.0, "mid": 0.0, "fine": 1.0},
    "balanced": {"coarse": 1.0, "mid": 1.0, "fine": 1.0},
}
"""Preset weights by what a query is for: the kind of thing, its class, this very image, or all of them equally."""

RESERVED_FIELDS = frozenset({
    "id", "path", "size", "mtime_ns", "taken", "width", "height", "content_hash", "_codes", TAG_COLUMN,
})  # fmt: skip
"""Columns that every row has."""

_RESULT_KEYS = frozenset({
    "query", "rank", "score", "distances", "ranks", "box", "verified", "verdict", "confidence", "chance", "lead",
    "tags",
})  # fmt: skip
"""Keys of a hit as JSON, beside which the extra fields are written."""

_MILVUS_WORDS = frozenset({
    "rowid", "timestamp", "and", "or", "not", "in", "like", "exists", "null", "true", "false", "text_match",
    "phrase_match", "random_sample", "array_length", "array_contains", "array_contains_all", "array_contains_any",
    "json_contains", "json_contains_all", "json_contains_any",
})  # fmt: skip
"""Lower-case names that Milvus reserves, or that a filter expression cannot refer to."""

COMPANION_ENDINGS = ("_encoder", "_regions", "_tuned", "_columns")
"""Endings of the names of the companion collections."""

REGIONS = "regions"
"""Name of the granularity of regions, in weights, distances and ranks."""

FINE = "fine"
"""Name of the granularity that tells one image from all others, and is searched with views of the query image."""

TEXT = "text"
"""Name of the ranking by words, in weights, distances and ranks."""

MOST_REGIONS = 256
"""Most regions of one image."""

Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")]
Bits = Annotated[int, Field(strict=True, ge=8, le=4096, multiple_of=8)]
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


def _whole(least: int, most: int, description: str) -> Any:
    return Field(strict=True, ge=least, le=most, description=description)


class Granularity(Model):
    """One level of description: a BINARY_VECTOR field of the collection."""

    name: Annotated[Name, Field(description="Name of the granularity in the encoder: coarse, mid or fine.")]
    bits: Annotated[Bits, Field(description="Code length. More bits: finer distinctions, bits / 8 bytes an image.")]
    weight: Annotated[Weight, Field(description="Weight in the fusion; 0 leaves it out of queries.")] = 1.0
    mmap: Annotated[
        Annotated[bool, Field(strict=True)] | None,
        Field(description="Keep this field's codes on disk, mapped into memory (servers only); null: server default."),
    ] = None


class EncoderSettings(Model):
    """Which encoder fills the collection."""

    name: Annotated[
        str,
        Field(
            strict=True, min_length=1, description="'builtin', 'large', or the path of an encoder file (.safetensors)."
        ),
    ] = "builtin"
    heads: Annotated[
        Literal["adapt", "fixed"],
        Field(description="adapt: fit the hash heads to the first ingest; fixed: use those of the encoder file."),
    ] = "adapt"


class RegionScale(Model):
    """Windows of one size."""

    size: Annotated[
        float,
        Field(strict=True, ge=0.1, le=1, allow_inf_nan=False, description="Side of a window / the image's."),
    ]
    grid: Annotated[int, _whole(1, 16, "Windows along each side: grid * grid of them.")]


class RegionSettings(Model):
    """Codes of regions, one row each in a companion collection."""

    bits: Annotated[Bits, Field(description="Code length of one region.")] = 128
    weight: Annotated[Weight, Field(description="Weight in the fusion; 0: only in queries that search regions.")] = 0.0
    scales: Annotated[tuple[RegionScale, ...], Field(min_length=1, max_length=8, description="Sizes of windows.")] = (
        RegionScale(size=0.7, grid=2),
        RegionScale(size=0.5, grid=3),
        RegionScale(size=0.33, grid=4),
    )

    @property
    def windows(self) -> tuple[tuple[float, int], ...]:
        """Size and grid of each scale, the argument of the function ``windows``."""
        return tuple((scale.size, scale.grid) for scale in self.scales)

    @property
    def count(self) -> int:
        """Regions of one image."""
        return sum(scale.grid**2 for scale in self.scales)

    @property
    def bytes_per_image(self) -> int:
        """Bytes of the codes of all regions of one image."""
        return self.count * self.bits // 8

    @model_validator(mode="after")
    def _not_too_many(self) -> RegionSettings:
        if self.count > MOST_REGIONS:
            sentence = f"there are {self.count} regions, expected at most {MOST_REGIONS}; use smaller grids"
            raise model_error("RegionSettings", [Problem(("scales",), sentence)])
        return self


class FusionSettings(Model):
    """How the rankings of the granularities are fused."""

    method: Annotated[
        Literal["rank", "score", "chance", "server"],
        Field(
            description="rank: weighted 1 / (rrf_k + rank); score: weighted 1 - distance / bits; chance: weighted "
            "-log10 of the share of random pairs as near; server: Milvus'."
        ),
    ] = "rank"
    rrf_k: Annotated[int, _whole(1, 16_384, "Constant of rank fusion; small: the first ranks dominate.")] = 60
    depth: Annotated[int, _whole(1, 16_384, "Candidates retrieved of each granularity.")] = 100


class ExtraField(Model):
    """A column that the user adds, filled from ``--metadata``; an image without a value gets ``default``."""

    name: Annotated[Name, Field(description="Name of the column, as in the metadata file and in filters.")]
    type: Annotated[Literal["string", "int", "float", "bool"], Field(description="Type of the column.")]
    default: Annotated[str | int | float | bool | None, Field(description="Value of images without metadata.")] = None
    max_length: Annotated[int, _whole(1, 65_535, "Longest value of a string column, in bytes of UTF-8.")] = 1024

    @field_validator("default", mode="before")
    @classmethod
    def _default_fits_type(cls, value: object, info: ValidationInfo) -> object:
        kinds: dict[str, tuple[type, ...]] = {"string": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
        kind = info.data.get("type")
        if value is None or kind is None:
            return value
        if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "bool"):
            quotes = "; put it in quotes" if kind == "string" and not isinstance(value, dict | list) else ""
            raise field_error(f"got {format_value(value)}, expected a value of type {kind} like the field's{quotes}")
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise field_error(f"got {format_value(value)}, expected text without lone surrogates")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise field_error(f"got {format_value(value)}, expected a number that fits into 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise field_error(f"got {value}, expected a finite number")
        return float(value) if kind == "float" and isinstance(value, int) else value

    @model_validator(mode="after")
    def _default_fits_length(self) -> ExtraField:
        length = len(self.default.encode()) if isinstance(self.default, str) else 0
        if length > self.max_length:
            sentence = (
                f"takes {length} bytes, expected at most max_length {self.max_length}; shorten it or raise the limit"
            )
            raise model_error("ExtraField", [Problem(("default",), sentence)])
        return self


class StorageSettings(Model):
    """How Milvus stores the collection."""

    index: Annotated[
        Literal["auto", "BIN_FLAT", "BIN_IVF_FLAT", "HNSW"],
        Field(description="auto: BIN_FLAT on Milvus Lite, BIN_IVF_FLAT on a server. HNSW needs Milvus 2.6.4 or later."),
    ] = "auto"
    nlist: Annotated[
        int,
        _whole(
            1, 65_536, "BIN_IVF_FLAT: initial number of clusters, 4 times the root of a segment's rows (mgm doctor)."
        ),
    ] = 1024
    nprobe: Annotated[int, _whole(1, 65_536, "BIN_IVF_FLAT: clusters of nlist searched; more: slower, exacter.")] = 32
    m: Annotated[int, _whole(2, 2048, "HNSW: neighbours of each node.")] = 16
    ef_construction: Annotated[int, _whole(8, 2**31 - 1, "HNSW: candidates examined while building.")] = 200
    ef: Annotated[int, _whole(1, 32_768, "HNSW: candidates examined by a search.")] = 128
    shards: Annotated[int, _whole(1, 16, "Streams that writes are spread over; fixed at creation.")] = 1
    replicas: Annotated[int, _whole(1, 64, "Copies in memory, each on its own query nodes.")] = 1
    consistency: Annotated[
        Literal["Strong", "Session", "Bounded", "Eventually"],
        Field(description="How fresh a query's view is. Strong: all writes; Bounded: some seconds old."),
    ] = "Strong"
    partition_key: Annotated[
        Name | None,
        Field(description="A string or int field of 'fields' that partitions the rows; filters on it search fewer."),
    ] = None

    @model_validator(mode="after")
    def _probes_fit_lists(self) -> StorageSettings:
        if self.nprobe > self.nlist:
            key = "nprobe" if "nprobe" in self.model_fields_set else "nlist"
            sentence = f"nprobe {self.nprobe} is more than nlist {self.nlist}; expected nprobe to be nlist or less"
            raise model_error("StorageSettings", [Problem((key,), sentence)])
        return self


def is_reserved(name: str) -> bool:
    """Whether a field cannot have this name in any schema, since every row, every result or Milvus has it."""
    return name in RESERVED_FIELDS | _RESULT_KEYS | {REGIONS, TEXT, USER_TAGS} or name.casefold() in _MILVUS_WORDS


class Schema(Model):
    """The whole description of one collection."""

    version: Annotated[Literal[1], Field(description="Version of this format.")] = 1
    collection: Annotated[Name, Field(description="Name of the collection in Milvus.")] = "images"
    encoder: Annotated[EncoderSettings, Field(description="Which encoder fills the collection.")] = EncoderSettings()
    granularities: Annotated[
        tuple[Granularity, ...],
        Field(min_length=1, max_length=10, description="The codes of an image, one binary vector field each."),
    ] = (
        Granularity(name="coarse", bits=64, weight=2.5),
        Granularity(name="mid", bits=128),
        Granularity(name="fine", bits=256, weight=0.1),
    )
    regions: Annotated[
        RegionSettings | None, Field(description="Codes of regions, to search details and locate them; null: none.")
    ] = None
    fusion: Annotated[FusionSettings, Field(description="How the rankings are fused.")] = FusionSettings()
    fields: Annotated[
        tuple[ExtraField, ...], Field(max_length=50, description="Additional columns, filled from --metadata.")
    ] = ()
    storage: Annotated[StorageSettings, Field(description="How Milvus stores the collection.")] = StorageSettings()

    @property
    def bits(self) -> dict[str, int]:
        """Granularity -> code length in bits, in the order of the schema."""
        return {g.name: g.bits for g in self.granularities}

    @property
    def code_bits(self) -> dict[str, int]:
        """``bits``, and the code length of a region under ``regions``."""
        return self.bits | ({REGIONS: self.regions.bits} if self.regions else {})

    @property
    def weights(self) -> dict[str, float]:
        """Granularity -> default weight in the fusion, without ``regions``."""
        return {g.name: g.weight for g in self.granularities}

    @property
    def bytes_per_image(self) -> int:
        """Bytes of all codes of one image, those of its regions included."""
        return sum(g.bits for g in self.granularities) // 8 + (self.regions.bytes_per_image if self.regions else 0)

    @classmethod
    def load(cls, source: str | Path) -> Schema:
        """Read a preset (``"compact"``) or a YAML file; ``./compact`` is a file with a preset's name.

        Raises:
            SchemaError: no such preset or file, or not a schema: a line for each problem, ``file:line: key: sentence``.
        """
        from mg_milvus.schema.yaml import load

        return load(source, cls)

    @classmethod
    def from_yaml(cls, text: str, name: str = "<text>") -> Schema:
        """Read YAML text; ``name`` precedes the line numbers in errors.

        Raises:
            SchemaError: as ``load``.
        """
        from mg_milvus.schema.yaml import parse

        return parse(text, name, cls)

    def to_yaml(self) -> str:
        """YAML text with every setting, defaults included; ``from_yaml`` is the inverse."""
        from mg_milvus.schema.yaml import dump

        return dump(self)

    @model_validator(mode="after")
    def _is_consistent(self) -> Schema:
        if problems := [*self._name_problems(), *self._other_problems()]:
            raise model_error("Schema", problems)
        return self

    def _name_problems(self) -> Iterator[Problem]:
        taken: dict[str, str] = {}
        named = [("granularities", i, g.name) for i, g in enumerate(self.granularities)]
        named += [("fields", i, f.name) for i, f in enumerate(self.fields)]
        for section, i, name in named:
            where = (section, i, "name")
            if name == REGIONS and section == "granularities":
                yield Problem(where, "'regions' is the granularity of regions; write a section 'regions' instead")
            elif name == TEXT and section == "granularities":
                yield Problem(where, "'text' is the ranking of words; choose another name")
            elif name in RESERVED_FIELDS:
                yield Problem(where, f"'{name}' is a column that every row has; choose another name")
            elif section == "fields" and name in _RESULT_KEYS:
                yield Problem(where, f"'{name}' is a key of every result; choose another name")
            elif name.casefold() in _MILVUS_WORDS:
                yield Problem(where, f"'{name}' is a reserved word of Milvus; choose another name")
            elif name in taken:
                yield Problem(where, f"'{name}' is already the name of {taken[name]}; choose another name")
            else:
                taken[name] = f"{section}[{i}]"

    def _other_problems(self) -> Iterator[Problem]:
        if self.collection.endswith(COMPANION_ENDINGS):
            ending = next(e for e in COMPANION_ENDINGS if self.collection.endswith(e))
            reserved = f"names ending in '{ending}' are reserved for companion collections"
            sentence = f"got '{self.collection}', but {reserved}; choose another"
            yield Problem(("collection",), sentence)
        elif re.search(r"_refit[0-9]+(_whole)?$", self.collection):
            reserved = "names ending in '_refit' and a number are reserved for what mgm refit builds"
            yield Problem(("collection",), f"got '{self.collection}', but {reserved}; choose another")
        if not any(self.weights.values()):
            yield Problem(("granularities",), "every weight is 0, expected at least one above 0")
        key = self.storage.partition_key
        possible = [f.name for f in self.fields if f.type in {"string", "int"}]
        if key is not None and key not in possible:
            listed = ", ".join(possible) or "there is none: add one under 'fields'"
            sentence = f"got '{key}', expected an extra field of type string or int ({listed})"
            yield Problem(("storage", "partition_key"), sentence)


def json_schema() -> dict[str, Any]:
    """Describe the format as JSON Schema, for completion in editors; ``schemas/mgm.schema.json`` holds it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Schema.model_json_schema()


Scale = tuple[float, int]
"""Side of a window as a share of the image's, and windows along each side."""


def windows(scales: Sequence[Scale]) -> NDArray[np.float64]:
    """All windows: (regions, 4) float64 of left, top, width, height as shares of the image's sides."""
    import numpy as np

    boxes = []
    for size, grid in scales:
        starts = np.linspace(0, 1 - size, grid) if grid > 1 else np.array([(1 - size) / 2])
        boxes += [(left, top, size, size) for top in starts for left in starts]
    return np.array(boxes).reshape(-1, 4)


def scale_of(scales: Sequence[Scale]) -> NDArray[np.int64]:
    """Index in ``scales`` of each window: (regions,) int64."""
    import numpy as np

    return np.repeat(np.arange(len(scales)), [grid * grid for _, grid in scales])


QUERY_PASSES = (1.0, 2**0.5)
"""Sizes, as multiples of an ingest's, at which an image is encoded to find what it shares with others: what they share
has another size in each."""


def query_scales(scales: Sequence[Scale]) -> tuple[tuple[Scale, ...], ...]:
    """The windows of a query image for each of ``QUERY_PASSES``, scale by scale like those of indexed images.

    In a pass that is larger by p a window is smaller by p, so that it covers as many places of the feature maps as the
    indexed ones of its scale. Windows overlap by about three fifths.
    """
    return tuple(
        tuple((size / p, max(1, round(1 + 2.5 * (1 - size / p) / (size / p)))) for size, _ in scales)
        for p in QUERY_PASSES
    )


def shared_scales(scales: Sequence[Scale]) -> NDArray[np.int64]:
    """Index in ``scales`` of each window of ``query_scales``, pass by pass: (m,) int64."""
    import numpy as np

    return np.concatenate([scale_of(own) for own in query_scales(scales)])


def box_of(window: NDArray[np.float64], width: int, height: int) -> Box:
    """A window (4,) of an image as a box in pixels, at least one pixel wide and high and inside the image."""
    left, top = (min(int(share * side), side - 1) for share, side in zip(window, (width, height), strict=False))
    across, down = (max(1, round(share * side)) for share, side in zip(window[2:], (width, height), strict=True))
    return left, top, min(across, width - left), min(down, height - top)


def region_id(image: str, number: int) -> str:
    """Primary key of a region: the image's id and the window's number."""
    return f"{image}:{number}"


def split_id(region: str) -> tuple[str, int]:
    """Image id and window number of a region's primary key."""
    image, _, number = region.rpartition(":")
    return image, int(number)
