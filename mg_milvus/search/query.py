"""How to ask: options -> a checked query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from numbers import Integral
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar, cast, get_args

from mg_milvus.errors import QueryError
from mg_milvus.schema.errors import shown
from mg_milvus.schema.models import PROFILES, Schema
from mg_milvus.schema.regions import REGIONS

if TYPE_CHECKING:
    from collections.abc import Iterable


Method = Literal["rank", "score", "server"]
Plan = Literal["auto", "full", "cascade"]
Regions = Literal["contains", "overlap"]
_T = TypeVar("_T")
MAX_DEPTH = 16_384
"""What Milvus returns at most for one search."""
MAX_WEIGHT = 1e300
"""Sums of a few of them are still numbers."""
CASCADE_DEPTH = 4_000
"""Candidates of a cascade, unless told otherwise. Of 10,000, 100,000 and 1,000,000 images they hold 0.98, 0.92 and
0.74 of the ten that the full search finds (benchmarks/cascade.py)."""


class QueryOptions(TypedDict, total=False):
    """How to ask; what is missing or None comes from the collection's schema.

    Attributes:
        k: results returned (10).
        weights: granularity -> weight in the fusion; granularities that are not named are left out.
        profile: named weights instead: category, object, instance or balanced.
        granularity: ask this one only.
        fusion: ``rank``, ``score`` or ``server``. The server's own (hybrid_search) takes one round trip, but ranks an
            image on those granularities only that found it, breaks ties by its own order, and cannot weigh
            granularities on older servers.
        rrf_k: the constant in weight / (rrf_k + rank).
        depth: candidates asked of each granularity, at least k; in a cascade, of the one that is asked.
        filter: a Milvus boolean expression on the row's fields.
        crop: (x, y, width, height) in pixels of the upright query image: the part of it that is meant. Where regions
            are asked, they look for the crop and the other granularities see the whole image; otherwise all see the
            crop. On a collection with regions, a crop without weights asks the regions alone.
        regions: ask the regions of the images. ``contains``: which contain what the query image, or the crop, shows,
            and where. ``regions``: which share something with it, at whatever place and scale: every region of the
            query image is looked for.
        plan: ``full`` asks every granularity for its nearest; ``cascade`` only the one of the shortest codes, for many,
            from which the others then name their nearest; ``auto`` (the schema's default) chooses by the number of
            images.
    """

    k: int
    weights: Mapping[str, float] | None
    profile: str | None
    granularity: str | None
    fusion: str | None
    rrf_k: int | None
    depth: int | None
    filter: str | None
    crop: tuple[int, int, int, int] | None
    regions: str | None
    plan: str | None


@dataclass(frozen=True, slots=True)
class Query:
    """Checked options: see ``QueryOptions``.

    Attributes:
        weights: positive weights only.
        regions: what is looked for among the regions; None when ``weights`` does not name them.
        first_depth: candidates that a cascade asks of its one granularity: the option ``depth``, when it is given.
        pool: of these, how many nearest each granularity then names for the fusion, as if it had been asked.
    """

    k: int
    weights: Mapping[str, float]
    fusion: Method
    rrf_k: int
    depth: int
    where: str | None
    regions: Regions | None = None
    plan: Plan = "full"
    first_depth: int = CASCADE_DEPTH
    pool: int = 100

    @classmethod
    def of(cls, schema: Schema, options: QueryOptions) -> Query:
        """Check options against a schema and fill what they leave open.

        Raises:
            QueryError: an option is unknown or out of range.
        """
        unknown = sorted(set(options) - set(QueryOptions.__annotations__))
        if unknown:
            raise QueryError(f"unknown option {shown(unknown[0])}{_nearest(unknown[0], QueryOptions.__annotations__)}")
        k = _within("k", options.get("k", 10), MAX_DEPTH)
        default_depth = min(max(schema.fusion.depth, k), MAX_DEPTH)
        depth = _within("depth", _or(options.get("depth"), default_depth), MAX_DEPTH)
        if depth < k:
            raise QueryError(f"depth is {depth} and k is {k}; ask for at least as many candidates as results")
        fusion = _or(options.get("fusion"), schema.fusion.method)
        if fusion not in get_args(Method):
            raise QueryError(f"fusion is {shown(fusion)}, expected {', '.join(get_args(Method))}")
        method = cast("Method", fusion)
        rrf_k = _within("rrf_k", _or(options.get("rrf_k"), schema.fusion.rrf_k), MAX_DEPTH)
        plan = _or(options.get("plan"), schema.fusion.plan)
        if plan not in get_args(Plan):
            raise QueryError(f"plan is {shown(plan)}, expected {', '.join(get_args(Plan))}")
        _check_types(options)
        weights = _weights(schema, options)
        regions = cast("Regions", options.get("regions") or "contains") if REGIONS in weights else None
        if regions and method == "server":
            raise QueryError("the server cannot fuse the regions with the rest; ask with fusion 'rank' or 'score'")
        first_depth = depth if options.get("depth") is not None else max(depth, CASCADE_DEPTH)
        return cls(
            k, weights, method, rrf_k, depth, options.get("filter") or None, regions, cast("Plan", plan), first_depth,
            default_depth,
        )  # fmt: skip

    def largest(self, schema: Schema) -> dict[str, int]:
        """Granularity -> the largest distance there can be; for regions the sum over all details."""
        details = schema.regions.count if schema.regions and self.regions == "overlap" else 1
        return {name: bits * (details if name == REGIONS else 1) for name, bits in schema.code_bits.items()}

    def without_regions(self, options: QueryOptions) -> Query:
        """The same query for an image of which only its codes are there.

        Raises:
            QueryError: regions were asked for, or nothing else.
        """
        if REGIONS not in self.weights:
            return self
        weights = {name: weight for name, weight in self.weights.items() if name != REGIONS}
        if names_regions(options) or not weights:
            raise QueryError("regions are looked for with the image itself; ask with its path, or without regions")
        return replace(self, weights=weights, regions=None)


def names_regions(options: QueryOptions) -> bool:
    """Whether the options name the regions, so that an answer without them would be to another query."""
    named = options.get("regions") is not None or options.get("granularity") == REGIONS
    return named or bool((options.get("weights") or {}).get(REGIONS))


def _check_types(options: QueryOptions) -> None:
    """Refuse what is not of the kind that ``QueryOptions`` says, where it is not refused by its value.

    Raises:
        QueryError: an option is something else.
    """
    weights, crop = options.get("weights"), options.get("crop")
    if weights is not None and not isinstance(weights, Mapping):
        raise QueryError(f"weights are {shown(weights)}, expected granularities with a number each")
    for name in ("granularity", "profile", "filter"):
        if not isinstance(options.get(name, ""), str | None):
            raise QueryError(f"{name} is {shown(options.get(name))}, expected text")
    whole = isinstance(crop, list | tuple) and len(crop) == 4 and all(_is_whole(number) for number in crop)
    if crop is not None and not whole:
        raise QueryError(f"crop is {shown(crop)}, expected four whole numbers: x, y, width and height in pixels")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and abs(int(value)) < 2**63


def _weights(schema: Schema, options: QueryOptions) -> dict[str, float]:
    weights, profile, only = options.get("weights"), options.get("profile"), options.get("granularity")
    if sum(option is not None for option in (weights, profile, only)) > 1:
        raise QueryError("weights, profile and granularity exclude each other; give one of them")
    asks_regions = _asks_regions(schema, options)
    if only is not None:
        weights = {only: 1.0}
    if profile is not None:
        weights = _weights_of_profile(schema, profile)
    if weights is None:
        weights = {} if asks_regions else schema.weights | ({REGIONS: schema.regions.weight} if schema.regions else {})
    if asks_regions and schema.regions and REGIONS not in weights:
        weights = {**weights, REGIONS: schema.regions.weight or 1.0}
    known = schema.code_bits
    for name, weight in weights.items():
        if name == REGIONS and schema.regions is None:
            raise QueryError(_NO_REGIONS)
        if name not in known:
            raise QueryError(
                f"unknown granularity {shown(name)}{_nearest(name, known)}; this collection has {', '.join(known)}"
            )
        if not (isinstance(weight, int | float) and 0 <= weight <= MAX_WEIGHT):
            raise QueryError(f"the weight of {name} is {shown(weight)}, expected a number from 0 to {MAX_WEIGHT:g}")
    used = {name: float(weights[name]) for name in known if weights.get(name, 0) > 0}
    if not used:
        raise QueryError("all weights are 0; give at least one granularity a weight above 0")
    return used


_NO_REGIONS = (
    "this collection has no codes of regions, which regions are found by; ingest into a new collection with "
    "--schema regions, or ask without regions"
)


def _asks_regions(schema: Schema, options: QueryOptions) -> bool:
    """Whether the regions are asked for, by name or by a crop that nothing else is said of.

    Raises:
        QueryError: in an unknown way, or there are none.
    """
    regions = options.get("regions")
    if regions is not None and regions not in get_args(Regions):
        raise QueryError(f"regions is {shown(regions)}, expected {' or '.join(get_args(Regions))}")
    if regions is not None and schema.regions is None:
        raise QueryError(_NO_REGIONS)
    explicit = any(options.get(name) is not None for name in ("weights", "profile", "granularity"))
    return regions is not None or (options.get("crop") is not None and schema.regions is not None and not explicit)


def _weights_of_profile(schema: Schema, profile: str) -> dict[str, float]:
    if profile not in PROFILES:
        raise QueryError(f"unknown profile {shown(profile)}, expected {', '.join(PROFILES)}")
    weights = {name: PROFILES[profile].get(name, weight) for name, weight in schema.weights.items()}
    if not any(weights.values()):
        asked = ", ".join(name for name, weight in PROFILES[profile].items() if weight)
        raise QueryError(
            f"the profile '{profile}' asks {asked}, this collection has {', '.join(schema.bits)}; choose another, "
            "or give weights"
        )
    return weights


def _within(name: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise QueryError(f"{name} is {shown(value)}, expected a whole number from 1 to {most}")
    return value


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _nearest(name: object, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f" (did you mean '{near[0]}'?)" if near else ""
