"""The options of a query, and the checked query that is made from them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, cast, get_args

from mg_milvus.errors import QueryError
from mg_milvus.records import MINIMA
from mg_milvus.schema.errors import format_value
from mg_milvus.schema.models import FINE, PROFILES, REGIONS, TEXT, Schema, shared_scales
from mg_milvus.store.filters import Filter, filter_text

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from mg_milvus.codes import QueryCodes
    from mg_milvus.records import HitVerdict
    from mg_milvus.search.words import Words


AUTO = "auto"
"""The profile by default."""
Method = Literal["rank", "score", "chance", "server"]
Regions = Literal["contains", "overlap"]
_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])
MAX_DEPTH = 16_384
"""Most results that Milvus returns for one search."""
MAX_WEIGHT = 1e300
"""Sums of a few such weights are still finite."""
_NO_REGIONS = (
    "this collection has no codes of regions; ingest into a new collection with --schema regions, or query without "
    "regions"
)


_NO_DETAILS = (
    "this collection has no regions, so the crop was compared with whole images; to find details, ingest into a new "
    "collection with --schema regions"
)


class QueryOptions(TypedDict, total=False):
    """How to search; options that are missing or None come from the collection's schema.

    Attributes:
        k: results returned (10).
        weights: granularity -> weight in the fusion; granularities that are not named are left out.
        profile: named weights instead: category, object, instance or balanced; or ``auto``, the default: the schema's
            weights, and before all others the hits that stand out: as the same image on ``fine``, or, on a collection
            with regions, as the image that a crop or a photograph of it shows.
        granularity: search this one only.
        fusion: ``rank``, ``score``, ``chance`` or ``server``. Scores of ``chance``, -log10 of the share of random pairs
            that are as near, are comparable between queries. The server's own (hybrid_search) takes one round trip, but
            ranks an image only on the granularities whose search returned it, breaks ties by its own order, and ignores
            weights on older servers.
        rrf_k: the constant in weight / (rrf_k + rank).
        depth: candidates retrieved from each granularity, at least k.
        filter: a Milvus boolean expression on the row's fields, or values: ``{"kind": "shoe", "price": ("<", 40)}``;
            see ``Filter``.
        cluster: only images of this cluster, by its number, name or label: see ``ImageIndex.clusters``.
        crop: (x, y, width, height) in pixels of the upright query image: the area to search with. In a query with
            regions, the regions search with the crop and the other granularities with the whole image; otherwise all
            search with the crop. On a collection with regions, a crop without weights searches the regions only.
        regions: search the regions of the images. ``contains``: images that contain what the query image, or the crop,
            shows, and where. ``overlap``: images that share something with it, at any place and scale: every region of
            the query image is searched for.
        min: leave out hits whose verdict is less: ``same-image``, ``same-object``, ``same-kind`` or
            ``loosely-similar``; see ``Hit.verdict``.
        max_chance: leave out hits that are as near as a larger share of random pairs on every granularity of the query:
            0.001.
        verify: look at the pixels of the first ten hits: which of them is the same image, an edited one, or shows the
            flat object that the query image is, and where (``Hit.verified``). The order of the hits stays.
        views: search with the middle and the corners of the query image, too, on the granularity ``fine``: the distance
            is that of the nearest. So an image is found that is framed, on a page or in a collage. True by default for
            the profile ``instance``; takes six times as long to encode.
        text: words for what the images show, such as ``sports car``: one more ranking in the fusion, by the
            probability of that tag, or by the encoder's text tower, if it has one. Its weight is that of the
            granularities together, or ``text`` in ``weights``; beside several images, that of these images together.
    """

    k: int
    weights: Mapping[str, float] | None
    profile: str | None
    granularity: str | None
    fusion: str | None
    rrf_k: int | None
    depth: int | None
    filter: Filter | None
    cluster: str | None
    crop: tuple[int, int, int, int] | None
    regions: str | None
    min: str | None
    max_chance: float | None
    verify: bool
    views: bool | None
    text: str | None


_DEFAULTS: QueryOptions = {"k": 10, "verify": False}
"""Defaults that are the same for all collections; those of the other options are None: the schema's."""


def with_query_options(method: _F) -> _F:
    """Let ``help`` of a method that takes ``**options: Unpack[QueryOptions]`` show each option, and its signature, too.

    In the docstring the line of ``**options``, where there is one, gives place to what ``QueryOptions`` says.
    """
    signature = inspect.signature(method)
    own = [p for p in signature.parameters.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name), annotation=annotation.__forward_arg__
        )
        for name, annotation in QueryOptions.__annotations__.items()
    ]
    method.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    described = inspect.cleandoc(QueryOptions.__doc__ or "").partition("Attributes:\n")[2]
    if method.__doc__:  # not with python -OO
        method.__doc__ = re.sub(
            r"^    \*\*options:.*$", lambda _: described, inspect.cleandoc(method.__doc__), flags=re.M
        )
    return method


@dataclass(frozen=True, slots=True)
class Query:
    """Checked options: see ``QueryOptions``.

    Attributes:
        weights: positive weights only.
        where: the filter.
        regions: how the regions are searched; None when ``weights`` does not name them.
        views: search ``fine`` with views of the query image, too.
        least: the least verdict of a hit; None for any.
        max_chance: the largest chance of a hit, on the granularity where that is smallest.
        note: a sentence about a query that cannot be answered as it may be meant; else empty.
        auto: hits that stand out come first; see ``search.verdicts``. Then regions may be searched without a weight.
        text: the option; empty where it has no weight.
        words: what the text stands for in the collection; None without it, and before ``ImageIndex.check_query``.
    """

    k: int
    weights: Mapping[str, float]
    fusion: Method
    rrf_k: int
    depth: int
    where: str | None
    regions: Regions | None = None
    views: bool = False
    least: HitVerdict | None = None
    max_chance: float = 1.0
    auto: bool = False
    note: str = ""
    text: str = ""
    words: Words | None = None

    @property
    def needs_chance(self) -> bool:
        """Whether it can be answered only where the distances of random pairs are known."""
        return self.fusion == "chance" or self.least is not None or self.max_chance < 1

    @classmethod
    def of(cls, schema: Schema, options: QueryOptions) -> Query:
        """Check options against a schema, and take missing ones from it.

        Raises:
            QueryError: an option is unknown or out of range.
        """
        unknown = sorted(set(options) - set(QueryOptions.__annotations__))
        if unknown:
            hint = nearest_name(unknown[0], QueryOptions.__annotations__)
            raise QueryError(f"unknown option {format_value(unknown[0])}{hint}")
        _check_types(options)
        k = _whole_number("k", options.get("k", _DEFAULTS["k"]))
        depth = _whole_number("depth", _or(options.get("depth"), min(max(schema.fusion.depth, k), MAX_DEPTH)))
        if depth < k:
            raise QueryError(f"depth is {depth} and k is {k}; ask for at least as many candidates as results")
        fusion = cast("Method", _or(options.get("fusion"), schema.fusion.method))
        if fusion not in get_args(Method):
            raise QueryError(f"fusion is {format_value(fusion)}, expected {', '.join(get_args(Method))}")
        weights = _weights(schema, options)
        auto = fusion == "rank" and _is_auto(schema, options)
        searched = REGIONS in weights or (auto and schema.regions is not None)
        regions = cast("Regions", options.get("regions") or "contains") if searched else None
        if regions and fusion == "server":
            raise QueryError("the server cannot fuse the regions with the rest; query with fusion 'rank' or 'score'")
        if fusion == "chance" and (regions or TEXT in weights):
            what = REGIONS if regions else TEXT
            raise QueryError(f"there is no chance of {what}; query with fusion 'rank' or 'score', or without {what}")
        if TEXT in weights and fusion == "server":
            raise QueryError("the server cannot fuse words with the rest; query with fusion 'rank' or 'score'")
        return cls(
            k=k,
            weights=weights,
            fusion=fusion,
            rrf_k=_whole_number("rrf_k", _or(options.get("rrf_k"), schema.fusion.rrf_k)),
            depth=depth,
            where=filter_text(options.get("filter")) or None,
            regions=regions,
            views=_views(schema, options),
            least=_least(options.get("min")),
            max_chance=_share(_or(options.get("max_chance"), 1.0)),
            auto=auto,
            note=_NO_DETAILS if options.get("crop") is not None and schema.regions is None else "",
            text=_text(options["text"]) if TEXT in weights else "",
        )

    def max_distances(self, schema: Schema) -> dict[str, int]:
        """Granularity -> the largest possible distance in bits; for regions the sum over all query regions."""
        many = schema.regions and self.regions == "overlap"
        count = len(shared_scales(schema.regions.windows)) if schema.regions and many else 1
        of_codes = {name: bits * (count if name == REGIONS else 1) for name, bits in schema.code_bits.items()}
        return of_codes | ({TEXT: self.words.farthest} if self.words is not None else {})

    def text_only(self) -> Query:
        """The same query by its words alone, without an image.

        Raises:
            QueryError: it has none.
        """
        if not self.text:
            raise QueryError("there is nothing to search with: give an image, or text")
        return replace(self, weights={TEXT: 1.0}, regions=None)

    def without_regions(self, options: QueryOptions) -> Query:
        """The same query without regions, for a query image of which only the codes are known.

        Raises:
            QueryError: the options name the regions, or nothing else.
        """
        if REGIONS not in self.weights:
            return replace(self, regions=None)
        weights = {name: weight for name, weight in self.weights.items() if name != REGIONS}
        if names_regions(options) or not weights:
            raise QueryError("regions are searched with the image itself; query with its path, or without regions")
        return replace(self, weights=weights, regions=None)

    def without_image(self, options: QueryOptions) -> Query:
        """As ``without_regions``; and views cannot be asked for.

        Raises:
            QueryError: the options name the regions, or nothing else, or views.
        """
        if options.get("views"):
            raise QueryError("views are parts of the image itself; query with its path, or without views")
        return self.without_regions(options)


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """One of several images that are searched with at once.

    Attributes:
        image: as for ``ImageIndex.query``; or instead:
        like: the id or path of an indexed image, which is left out of the results; or instead:
        codes: of an image, as ``ImageIndex.encode`` returns them; those of views and of regions are not used.
        weight: of the image in the fusion; below 0 it pushes down what is near to it.
    """

    image: Any = None
    like: str | os.PathLike[str] | None = None
    codes: QueryCodes | None = None
    weight: float = 1.0


def check_together(terms: Sequence[QueryTerm], query: Query, options: QueryOptions) -> Query:
    """Check a query with several images; the query without regions.

    Raises:
        QueryError: there is neither text nor an image with a positive weight, an image is given twice or not at all, a
            weight is no number, regions are to be searched, or the server is to fuse.
    """
    for term in terms:
        if sum(given is not None for given in (term.image, term.like, term.codes)) != 1:
            raise QueryError(
                "each of several query images needs an image, like=ID_OR_PATH, or codes, and only one of them"
            )
        if not (isinstance(term.weight, int | float) and abs(term.weight) <= MAX_WEIGHT and term.weight):
            raise QueryError(f"the weight of an image is {format_value(term.weight)}, expected a number that is not 0")
    if not terms or (not query.text and not any(term.weight > 0 for term in terms)):
        raise QueryError("there is no image to look for: give at least one with a weight above 0, or text")
    if options.get("verify"):
        raise QueryError("the hits of several images cannot be verified; query with one of them")
    if options.get("views"):
        raise QueryError("several images are searched with as they are; query with one of them, or without views")
    if options.get("crop") is not None:
        raise QueryError("a crop is of one image: cut it out, and give the cut as one of the query images")
    if query.fusion == "server":
        raise QueryError("the server cannot fuse several images; query with fusion 'rank' or 'score'")
    return query.without_regions(options)


def names_regions(options: QueryOptions) -> bool:
    """Whether the options name the regions, so that results without them would be those of another query."""
    named = options.get("regions") is not None or options.get("granularity") == REGIONS
    return named or bool((options.get("weights") or {}).get(REGIONS))


def _check_types(options: QueryOptions) -> None:
    """Refuse values of another type than ``QueryOptions`` states, where no later check does.

    Raises:
        QueryError: an option has another type.
    """
    weights, crop = options.get("weights"), options.get("crop")
    if weights is not None and not isinstance(weights, Mapping):
        raise QueryError(f"weights are {format_value(weights)}, expected granularities with a number each")
    for name in ("granularity", "profile", "text", "cluster"):
        if not isinstance(options.get(name, ""), str | None):
            raise QueryError(f"{name} is {format_value(options.get(name))}, expected text")
    for name in ("verify", "views"):
        if not isinstance(options.get(name) or False, bool):
            raise QueryError(f"{name} is {format_value(options.get(name))}, expected True or False")
    whole = isinstance(crop, list | tuple) and len(crop) == 4 and all(_is_whole(number) for number in crop)
    if crop is not None and not whole:
        raise QueryError(f"crop is {format_value(crop)}, expected four whole numbers: x, y, width and height in pixels")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and abs(int(value)) < 2**63


def _weights(schema: Schema, options: QueryOptions) -> dict[str, float]:
    """The positive weights, in the schema's order."""
    weights, profile, only = options.get("weights"), options.get("profile"), options.get("granularity")
    if sum(option is not None for option in (weights, profile, only)) > 1:
        raise QueryError("weights, profile and granularity exclude each other; give one of them")
    searches_regions = _searches_regions(schema, options)
    if only is not None:
        weights = {only: 1.0}
    if profile not in {None, AUTO}:
        weights = _profile_weights(schema, profile)
    if weights is None:
        default = schema.weights | ({REGIONS: schema.regions.weight} if schema.regions else {})
        weights = {} if searches_regions else default
    if searches_regions and schema.regions and REGIONS not in weights:
        weights = {**weights, REGIONS: schema.regions.weight or 1.0}
    known = [*schema.code_bits, *([TEXT] if options.get("text") is not None else [])]
    for name, weight in weights.items():
        if name == TEXT and name not in known:
            raise QueryError("there is a weight of text, but no text; give both, or leave the weight out")
        if name == REGIONS and schema.regions is None:
            raise QueryError(_NO_REGIONS)
        if name not in known:
            unknown = f"{format_value(name)}{nearest_name(name, known)}"
            raise QueryError(f"unknown granularity {unknown}; this collection has {', '.join(known)}")
        if not (isinstance(weight, int | float) and 0 <= weight <= MAX_WEIGHT):
            given = format_value(weight)
            raise QueryError(f"the weight of {name} is {given}, expected a number from 0 to {MAX_WEIGHT:g}")
    positive = {name: float(weights[name]) for name in known if weights.get(name, 0) > 0}
    if options.get("text") is not None and TEXT not in weights:
        positive[TEXT] = sum(positive.values())
    if not positive:
        raise QueryError("all weights are 0; give at least one granularity a weight above 0")
    return positive


def _is_auto(schema: Schema, options: QueryOptions) -> bool:
    """Whether the profile is ``auto``: as given, or without any other choice of what to search with."""
    chosen = options.get("weights") is not None or options.get("granularity") is not None
    return options.get("profile") == AUTO or not (
        chosen or options.get("profile") or _searches_regions(schema, options)
    )


def _searches_regions(schema: Schema, options: QueryOptions) -> bool:
    """Whether the option ``regions`` is given, or a crop without weights on a collection with regions.

    Raises:
        QueryError: the option has an unknown value, or the collection has no regions.
    """
    regions = options.get("regions")
    if regions is not None and regions not in get_args(Regions):
        raise QueryError(f"regions is {format_value(regions)}, expected {' or '.join(get_args(Regions))}")
    if regions is not None and schema.regions is None:
        raise QueryError(_NO_REGIONS)
    weighted = any(options.get(name) not in {None, AUTO} for name in ("profile", "granularity"))
    weighted = weighted or options.get("weights") is not None
    return regions is not None or (options.get("crop") is not None and schema.regions is not None and not weighted)


def _views(schema: Schema, options: QueryOptions) -> bool:
    """Whether to search with views; where nothing is said, with the profile ``instance``.

    Raises:
        QueryError: they are asked for, and the schema has no granularity that is searched with them.
    """
    given = options.get("views")
    if given and FINE not in schema.bits:
        raise QueryError(f"views are searched on {FINE}, this collection has {', '.join(schema.bits)}")
    return options.get("profile") == "instance" if given is None else given


def _profile_weights(schema: Schema, profile: str | None) -> dict[str, float]:
    if profile is None or profile not in PROFILES:
        raise QueryError(f"unknown profile {format_value(profile)}, expected {AUTO}, {', '.join(PROFILES)}")
    weights = {name: PROFILES[profile].get(name, weight) for name, weight in schema.weights.items()}
    if not any(weights.values()):
        used = ", ".join(name for name, weight in PROFILES[profile].items() if weight)
        raise QueryError(
            f"the profile '{profile}' uses {used}, this collection has {', '.join(schema.bits)}; choose another, "
            "or give weights"
        )
    return weights


def _whole_number(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DEPTH:
        raise QueryError(f"{name} is {format_value(value)}, expected a whole number from 1 to {MAX_DEPTH}")
    return value


def _least(value: object) -> HitVerdict | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in MINIMA:
        raise QueryError(f"min is {format_value(value)}, expected {', '.join(MINIMA)}")
    return MINIMA[value]


def _text(value: str | None) -> str:
    if not (value or "").strip():
        raise QueryError(f"text is {format_value(value)}, expected words for what images show, such as 'sports car'")
    return value or ""


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise QueryError(f"max_chance is {format_value(value)}, expected a share above 0, at most 1, such as 0.001")
    return float(value)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def nearest_name(name: object, known: Iterable[str]) -> str:
    """The hint at the known name that is nearest to an unknown one; empty when none is near."""
    close = get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f" (did you mean '{close[0]}'?)" if close else ""
