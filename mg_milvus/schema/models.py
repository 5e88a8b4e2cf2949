"""The schema: what one collection holds and how it is asked. Frozen pydantic models."""

from __future__ import annotations

import math
from collections.abc import Iterator  # noqa: TC003 - pydantic reads the annotations
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mg_milvus.schema.errors import Model, Problem, refused, refused_all, shown
from mg_milvus.schema.regions import REGIONS, RegionSettings

PROFILES: dict[str, dict[str, float]] = {
    "category": {"coarse": 3.0, "mid": 2.0, "fine": 0.5},
    "object": {"coarse": 1.0, "mid": 3.0, "fine": 1.0},
    "instance": {"coarse": 0.0, "mid": 0.0, "fine": 1.0},
    "balanced": {"coarse": 1.0, "mid": 1.0, "fine": 1.0},
}
"""Named weights: what kind of thing, which class, this very image, a bit of each."""

RESERVED_FIELDS = frozenset({"id", "path", "size", "mtime_ns", "width", "height", "content_hash", "_codes"})
"""Columns that every row has."""

_RESULT_KEYS = frozenset({"query", "rank", "score", "distances", "ranks", "box"})
"""Keys of a hit as JSON, beside which the extra fields are written."""

_MILVUS_WORDS = frozenset({
    "rowid", "timestamp", "and", "or", "not", "in", "like", "exists", "null", "true", "false", "text_match",
    "phrase_match", "random_sample", "array_length", "array_contains", "array_contains_all", "array_contains_any",
    "json_contains", "json_contains_all", "json_contains_any",
})  # fmt: skip
"""Names, lower case, that Milvus keeps for itself or that no filter expression can speak of."""

_COMPANIONS = ("_encoder", "_regions", "_tuned")
"""Endings of the collections kept beside a collection."""

Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")]


class Granularity(Model):
    """One level of description: a BINARY_VECTOR field of the collection."""

    name: Annotated[Name, Field(description="What the encoder calls it: coarse, mid or fine.")]
    bits: Annotated[
        int,
        Field(strict=True, ge=8, le=4096, multiple_of=8, description="Code length. More bits: finer, bits / 8 bytes."),
    ]
    weight: Annotated[
        float,
        Field(strict=True, ge=0, allow_inf_nan=False, description="Share in the fusion; 0 leaves it out of queries."),
    ] = 1.0
    mmap: Annotated[
        Annotated[bool, Field(strict=True)] | None,
        Field(
            description="Keep this field's codes on disk, mapped into memory (servers only); null: the server's own."
        ),
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
        Field(description="adapt: fit the hash heads on the first ingest; fixed: use those of the encoder file."),
    ] = "adapt"


class FusionSettings(Model):
    """How the rankings of the granularities become one."""

    method: Annotated[
        Literal["rank", "score", "server"],
        Field(description="rank: weighted 1 / (rrf_k + rank); score: weighted 1 - distance / bits; server: Milvus'."),
    ] = "rank"
    rrf_k: Annotated[
        int, Field(strict=True, ge=1, le=16_384, description="Constant of rank fusion; small: the first ranks rule.")
    ] = 60
    depth: Annotated[int, Field(strict=True, ge=1, le=16_384, description="Candidates asked of each granularity.")] = (
        100
    )
    plan: Annotated[
        Literal["auto", "full", "cascade"],
        Field(description="full: ask every field; cascade: the shortest only, then rank what it found; auto: by size."),
    ] = "auto"


class ExtraField(Model):
    """A column of the user's own, filled from ``--metadata``; an image without a value gets ``default``."""

    name: Annotated[Name, Field(description="Name of the column, as in the metadata file and in filters.")]
    type: Annotated[Literal["string", "int", "float", "bool"], Field(description="What the column holds.")]
    default: Annotated[
        str | int | float | bool | None, Field(description="Value of images that the metadata does not name.")
    ] = None
    max_length: Annotated[
        int, Field(strict=True, ge=1, le=65_535, description="Longest value of a string column, in bytes of UTF-8.")
    ] = 1024

    @field_validator("default", mode="before")
    @classmethod
    def _default_fits_type(cls, value: object, info: ValidationInfo) -> object:
        kinds: dict[str, tuple[type, ...]] = {"string": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
        kind = info.data.get("type")
        if value is None or kind is None:
            return value
        if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "bool"):
            quotes = "; put it in quotes" if kind == "string" and not isinstance(value, dict | list) else ""
            raise refused(f"got {shown(value)}, expected a value of type {kind} like the field's{quotes}")
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise refused(f"got {shown(value)}, expected text without lone surrogates")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise refused(f"got {shown(value)}, expected a number that fits into 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise refused(f"got {value}, expected a finite number")
        return float(value) if kind == "float" and isinstance(value, int) else value

    @model_validator(mode="after")
    def _default_fits_length(self) -> ExtraField:
        length = len(self.default.encode()) if isinstance(self.default, str) else 0
        if length > self.max_length:
            sentence = f"takes {length} bytes, expected at most max_length {self.max_length}; shorten it or raise that"
            raise refused_all("ExtraField", [Problem(("default",), sentence)])
        return self


class StorageSettings(Model):
    """How Milvus keeps the collection."""

    index: Annotated[
        Literal["auto", "BIN_FLAT", "BIN_IVF_FLAT", "HNSW"],
        Field(description="auto: BIN_FLAT on Milvus Lite, BIN_IVF_FLAT on a server. HNSW needs Milvus 2.6.4 or later."),
    ] = "auto"
    nlist: Annotated[
        int,
        Field(
            strict=True,
            ge=1,
            le=65_536,
            description="BIN_IVF_FLAT: clusters at first, 4 times the root of a segment's rows; see mgm doctor.",
        ),
    ] = 1024
    nprobe: Annotated[
        int,
        Field(
            strict=True, ge=1, le=65_536, description="BIN_IVF_FLAT: clusters of nlist searched; more: exacter, slower."
        ),
    ] = 32
    m: Annotated[int, Field(strict=True, ge=2, le=2048, description="HNSW: neighbours kept of each node.")] = 16
    ef_construction: Annotated[
        int, Field(strict=True, ge=8, le=2**31 - 1, description="HNSW: candidates looked at while building.")
    ] = 200
    ef: Annotated[int, Field(strict=True, ge=1, le=32_768, description="HNSW: candidates looked at in a search.")] = 128
    shards: Annotated[
        int, Field(strict=True, ge=1, le=64, description="Streams that writes are spread over; fixed once made.")
    ] = 1
    replicas: Annotated[
        int, Field(strict=True, ge=1, le=64, description="Copies in memory, each on query nodes of its own.")
    ] = 1
    consistency: Annotated[
        Literal["Strong", "Session", "Bounded", "Eventually"],
        Field(description="How fresh a query's view is. Strong: all that was written; Bounded: some seconds old."),
    ] = "Strong"
    partition_key: Annotated[
        Name | None,
        Field(description="A string or int field of 'fields' that rows are spread by; filters on it search less."),
    ] = None

    @model_validator(mode="after")
    def _probes_fit_lists(self) -> StorageSettings:
        if self.nprobe > self.nlist:
            key = "nprobe" if "nprobe" in self.model_fields_set else "nlist"
            sentence = f"nprobe {self.nprobe} is more than nlist {self.nlist}; expected nprobe to be nlist or less"
            raise refused_all("StorageSettings", [Problem((key,), sentence)])
        return self


class Schema(Model):
    """The whole description of one collection."""

    version: Annotated[Literal[1], Field(description="Version of this format.")] = 1
    collection: Annotated[Name, Field(description="Name of the collection in Milvus.")] = "images"
    encoder: Annotated[EncoderSettings, Field(description="Which encoder fills the collection.")] = EncoderSettings()
    granularities: Annotated[
        tuple[Granularity, ...],
        Field(min_length=1, max_length=10, description="The codes of an image, one binary vector field each."),
    ] = (
        Granularity(name="coarse", bits=64),
        Granularity(name="mid", bits=128),
        Granularity(name="fine", bits=256, weight=0.25),
    )
    regions: Annotated[
        RegionSettings | None, Field(description="Codes of regions, to find details and say where; null: none.")
    ] = None
    fusion: Annotated[FusionSettings, Field(description="How the rankings become one.")] = FusionSettings()
    fields: Annotated[
        tuple[ExtraField, ...], Field(max_length=50, description="Columns of your own, filled from --metadata.")
    ] = ()
    storage: Annotated[StorageSettings, Field(description="How Milvus keeps the collection.")] = StorageSettings()

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
        """Read a preset (``"compact"``) or a YAML file; a file with a preset's name is asked for as ``./compact``.

        Raises:
            SchemaError: no such preset or file, or not a schema: one line for each problem, ``file:line: key: what``.
        """
        from mg_milvus.schema.yaml import load

        return load(source, cls)

    @classmethod
    def from_yaml(cls, text: str, name: str = "<text>") -> Schema:
        """Read YAML text; ``name`` stands before the line numbers of errors.

        Raises:
            SchemaError: as ``load``.
        """
        from mg_milvus.schema.yaml import parse

        return parse(text, name, cls)

    def to_yaml(self) -> str:
        """YAML text with every setting, also those at their default; ``from_yaml`` gives an equal schema back."""
        from mg_milvus.schema.yaml import dump

        return dump(self)

    @model_validator(mode="after")
    def _hangs_together(self) -> Schema:
        if problems := [*self._problems_of_names(), *self._other_problems()]:
            raise refused_all("Schema", problems)
        return self

    def _problems_of_names(self) -> Iterator[Problem]:
        taken: dict[str, str] = {}
        named = [("granularities", i, g.name) for i, g in enumerate(self.granularities)]
        named += [("fields", i, f.name) for i, f in enumerate(self.fields)]
        for section, i, name in named:
            where = (section, i, "name")
            if name == REGIONS and section == "granularities":
                yield Problem(where, "'regions' is the granularity of regions; write a section 'regions' instead")
            elif name in RESERVED_FIELDS:
                yield Problem(where, f"'{name}' is a column that every row has; choose another name")
            elif section == "fields" and name in _RESULT_KEYS:
                yield Problem(where, f"'{name}' is a key of every result; choose another name")
            elif name.casefold() in _MILVUS_WORDS:
                yield Problem(where, f"'{name}' is a word of Milvus' own; choose another name")
            elif name in taken:
                yield Problem(where, f"'{name}' is already the name of {taken[name]}; choose another name")
            else:
                taken[name] = f"{section}[{i}]"

    def _other_problems(self) -> Iterator[Problem]:
        if self.collection.endswith(_COMPANIONS):
            ending = next(e for e in _COMPANIONS if self.collection.endswith(e))
            sentence = (
                f"got '{self.collection}', but names ending in '{ending}' are kept for companions; choose another"
            )
            yield Problem(("collection",), sentence)
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
