"""Verdicts: what a hit is to the query image, in words, from its distances and what chance looks like. Pure numpy.

``same image`` and ``same object or scene`` need a gap: the hit is clearly nearer on ``fine`` than the images behind
it, which are those that ``fine`` itself finds nearest, whatever the weights of the query. ``same kind`` and ``loosely
similar`` are probabilities of a logistic regression, fitted to labelled images of four kinds and to queries that are
foreign to them (benchmarks/verdicts.py): of the distances as shares of the bits, and of the spread of the collection.
Where images fall into clear groups, a distance on ``fine`` says more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.records import VERDICTS
from mg_milvus.schema.models import FINE, REGIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.records import HitVerdict
    from mg_milvus.search.chance import Chance

    Floats = NDArray[np.float64]


SAME_IMAGE, SAME_OBJECT, SAME_KIND, LOOSELY_SIMILAR, NOTHING = VERDICTS

_UNRELATED = 0.5
"""Distance of unrelated images, as a share of the bits."""
SURE = 0.06
"""An image that is this near on ``fine`` is the same, however near others are."""
FARTHEST = 0.27
IMAGE_GAP = 0.80
"""The same image is at most this far, as a share of the distance of the next image."""
OBJECT_GAP = 0.80
"""The same object or scene is at most this far, as a share of the distance of the ``CROWD``-th other image."""
REGION_LEAD = 0.92
"""The image that contains the query image is at most this far on the regions and ``fine`` together, as a share of the
next one's distance; see ``contains_query``."""
OF_REGIONS = 1.5
"""The power of the distance on the regions beside that on ``fine``: they tell more of a detail."""
FLOOR, FLOOR_OF_REGIONS = 1 / 16, 4.0
"""Distances below these, as a share of the bits of ``fine`` and in bits of the regions, hardly differ: about the
standard deviation of the distance of random codes of 64 bits, and the scale of the soft minimum over regions."""
REGION_GAP = 0.75
"""So far on the regions alone it is the same object or scene, if it is among the ``AGREEING`` nearest on ``fine``."""
AGREEING = 3
NEIGHBOURS = 10
"""The nearest images on ``fine``, and on the regions, of which one may lead as that which contains the query image."""
CROWD = 5
LIKELY = 0.85
"""Probability from which on a hit is of the same kind."""
POSSIBLE = 0.1
"""Probability from which on a hit is loosely similar: of what may well be of the kind no one says that it is nothing.
Small collections, whose heads are fitted to few images, have no higher ones even for what is of the same kind."""

INTERCEPT = -0.42
SLOPES = {"coarse": -7.05, "mid": -3.66, FINE: 4.79}
SPREAD = 169.6
SPREAD_OF_FINE = -345.1
"""The slope of ``fine`` times the spread."""
NEAREST_OF_KIND = 3.0
"""Standard deviations below a half of the bits from which on a distance on ``fine`` says nothing more about the kind:
what is nearer shares a background or is a copy. Without this limit, images of 32 pixels get too high a probability."""
FITTED_SPREADS = 0.01, 0.1
"""The regression is not extrapolated beyond these."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the candidates of one query are to its image.

    Attributes:
        verdicts: (n,) places in ``VERDICTS``; smaller is nearer.
        confidence: (n,) float64 probabilities that a candidate is at least of the same kind.
        chance: granularity -> (n,) float64 shares of random pairs of images that are as near.
        leading: ``fine`` -> (n,) which candidates stand out as the same image; ``regions`` -> (n,) which stands out as
            the one that contains the query image, where none is the same image.
    """

    verdicts: NDArray[np.intp]
    confidence: Floats
    chance: Mapping[str, Floats]
    leading: Mapping[str, NDArray[np.bool_]]

    def of(self, place: int) -> dict[str, Any]:
        """The fields ``verdict``, ``confidence``, ``chance`` and ``lead`` of one candidate's hit."""
        return {
            "verdict": VERDICTS[self.verdicts[place]],
            "confidence": float(self.confidence[place]),
            "chance": {name: float(own[place]) for name, own in self.chance.items()},
            "lead": next((name for name, own in self.leading.items() if own[place]), None),
        }


def judge(
    distances: Mapping[str, NDArray[Any]], chance: Chance, *, detail: bool = False, fine: NDArray[Any] | None = None
) -> Judgement:
    """Judge the candidates of one query.

    The nearest images on ``fine``, at least ``CROWD`` + 1, are to be among them, and with regions the ``NEIGHBOURS``
    nearest on both: then what a candidate is does not depend on which others there are.

    Args:
        distances: granularity -> (n,) distances in bits, for every granularity of ``chance``; those of ``regions`` are
            of images that contain the query image.
        chance: of the collection.
        detail: the query image is looked for inside of others, so that whole images need not agree with the regions.
        fine: (n,) distances on ``fine`` from the query's real codes, in bits; None: those of ``distances``. The image
            that contains the query image is told by them.
    """
    shares = {name: np.asarray(distances[name]) / (len(chance.counts[name]) - 1) for name in chance.counts}
    confidence = kind_probability(shares, chance)
    verdicts = np.select(
        [confidence >= LIKELY, confidence >= POSSIBLE],
        [VERDICTS.index(SAME_KIND), VERDICTS.index(LOOSELY_SIMILAR)],
        VERDICTS.index(NOTHING),
    )
    leading = {}
    image = thing = np.zeros(len(verdicts), bool)
    if FINE in shares:
        image, thing = stands_out(shares[FINE])
        leading[FINE] = image
    if REGIONS in distances:
        exact = shares.get(FINE) if fine is None else fine / (len(chance.counts[FINE]) - 1)
        leading[REGIONS], contains = contains_query(distances[REGIONS], exact, detail=detail)
        leading[REGIONS] &= not image.any()  # where the image itself is there, others do not lead
        thing = thing | contains
    verdicts[thing] = VERDICTS.index(SAME_OBJECT)
    verdicts[image] = VERDICTS.index(SAME_IMAGE)
    confidence = np.where(image | thing, np.maximum(confidence, LIKELY), confidence)
    shares_by_chance = {name: chance.of(name, distances[name]) for name in chance.counts}
    return Judgement(verdicts, confidence, shares_by_chance, leading)


def kind_probability(shares: Mapping[str, NDArray[Any]], chance: Chance) -> Floats:
    """The probability that candidates are of the query's kind.

    Args:
        shares: granularity -> (n,) distances as shares of the bits. One that the collection lacks counts as the mean of
            the others.
        chance: of the collection.
    """
    mean = np.mean(list(shares.values()), axis=0)
    spread = float(np.clip(chance.spread(FINE if FINE in shares else list(shares)[-1]), *FITTED_SPREADS))
    far = {name: shares.get(name, mean) for name in SLOPES}
    if FINE in shares:
        far[FINE] = np.maximum(shares[FINE], _UNRELATED - NEAREST_OF_KIND * chance.deviation(FINE))
    logit = INTERCEPT + SPREAD * spread + SPREAD_OF_FINE * spread * far[FINE]
    for name, slope in SLOPES.items():
        logit = logit + slope * far[name]
    probability: Floats = 1 / (1 + np.exp(-logit))
    return probability


def stands_out(shares: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which candidates are the same image, and which at least the same object or scene: (n,) and (n,) bool.

    Args:
        shares: (n,) distances on ``fine`` as shares of the bits.
    """
    ordered = np.concatenate([np.sort(shares), np.full(CROWD + 1, _UNRELATED)])
    near = shares <= FARTHEST
    image = (near & gap(np.append(shares, _UNRELATED), IMAGE_GAP)[:-1]) | (shares <= SURE)
    return image, image | (near & (shares <= OBJECT_GAP * ordered[CROWD]))


def contains_query(
    distances: NDArray[Any], fine: NDArray[Any] | None, *, detail: bool = False
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which candidate leads as the one that contains the query image, and which is the same object: (n,) and (n,) bool.

    The nearest on the regions and ``fine`` together leads if it is clearly nearer than the next, or among the
    ``AGREEING`` nearest on each. Together is (fine + ``FLOOR``) * (regions + ``FLOOR_OF_REGIONS``) ** ``OF_REGIONS``,
    of the ``NEIGHBOURS`` nearest on either. Without ``fine`` the nearest on the regions leads if it is clearly nearer.
    The same object or scene is the nearest on the regions alone, with a larger gap, where ``fine`` agrees.

    Args:
        distances: (n,) of the regions, in bits.
        fine: (n,) distances on ``fine`` as shares of the bits; None: the collection lacks it.
        detail: the same object needs no agreement of ``fine``.
    """
    if fine is None:
        return gap(distances, REGION_LEAD), gap(distances, REGION_GAP) & detail
    near = _nearest(fine, NEIGHBOURS) | _nearest(distances, NEIGHBOURS)
    together = (fine + FLOOR) * (distances + FLOOR_OF_REGIONS) ** OF_REGIONS
    together = np.where(near, together, np.inf)
    agrees = _nearest(fine, AGREEING)
    leads = gap(together, REGION_LEAD) | (gap(together, 1.0) & agrees & _nearest(distances, AGREEING))
    return leads, gap(distances, REGION_GAP) & (agrees | detail)


def _nearest(distances: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Which candidates are no farther than the one at place ``count``: (n,) bool."""
    nearest: NDArray[np.bool_] = distances <= np.sort(distances)[:count][-1:]
    return nearest


def gap(distances: NDArray[Any], share: float) -> NDArray[np.bool_]:
    """Which candidate is the nearest, at most at this share of the distance of the next: (n,) bool.

    Args:
        distances: (n,) of one granularity.
        share: at most 1.
    """
    if len(distances) < 2:
        return np.zeros(len(distances), bool)
    nearest, following = np.partition(distances, 1)[:2]
    found: NDArray[np.bool_] = (distances == nearest) & (distances <= share * following) & (distances < following)
    return found


def remark(verdicts: Sequence[HitVerdict | None]) -> str:
    """A sentence about an answer without any related image; empty where there is one, or no verdict.

    Args:
        verdicts: of the hits.
    """
    best = min((VERDICTS.index(verdict) for verdict in verdicts if verdict is not None), default=0)
    if VERDICTS[best] == NOTHING:
        return "nothing similar is indexed; the nearest are shown"
    if VERDICTS[best] == LOOSELY_SIMILAR:
        return "nothing surely of the same kind is indexed; the nearest are loosely similar"
    return ""
