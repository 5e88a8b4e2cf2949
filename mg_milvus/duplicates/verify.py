"""The verdict on a pair of images from their pixels: codes only propose pairs.

Two images are aligned, either as they lie (mirrored and turned ones included) or by local features (SIFT, Lowe 2004)
and a homography (RANSAC, Fischler and Bolles 1981), and compared in small windows at a resolution at which text can be
read. So forms, pages, screenshots and frames of a burst, which share most of their pixels, are told from copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.duplicates.looks import READABLE, opencv

if TYPE_CHECKING:
    from collections.abc import Callable

    from mg_milvus.duplicates.looks import Array, Detail, KeyPoints, Look


class Verdict(StrEnum):
    """What two images are to each other; the value is the word that people read."""

    IDENTICAL = "identical file"
    SAME = "same image"
    EDITED = "edited"
    SIMILAR = "similar"
    DIFFERENT = "different"
    UNSEEN = "alike by codes"
    """The images are near by their codes, and one of them is gone or cannot be read."""
    OBJECT = "same object"
    """One shows what the other one is, a poster, cover or label, within a scene of its own; said of hits only."""


COPIES = frozenset({Verdict.IDENTICAL, Verdict.SAME, Verdict.EDITED})
"""The verdicts that make a group."""

SEEN = tuple(verdict for verdict in Verdict if verdict not in {Verdict.UNSEEN, Verdict.OBJECT})
"""The verdicts that a look at the pixels of a pair gives."""

_REPROJECTION = 4.0
"""Pixels of ``DETAIL`` within which a matched point follows the homography."""
_LEAST_INLIERS = 12
_LEAST_CONSISTENT, _CONSISTENT_SHARE = 4, 0.3
"""Matched points of looks, and their share of all matches, that must lie alike for a second look. Copies have more than
0.4 and mostly 8 points and more; of a hundred pairs of different images two have as many by chance."""
_CONSISTENT_WITHIN = 0.02
"""Distance within which they lie alike, as a share of the longer side."""
_ALIKE = 0.8
"""Correlation of thumbnails from which images are compared as they lie, without features."""
_WINDOW = 15
"""Side in pixels of the windows that are compared: about one line of text."""
_STEP = 5
_NOISE = 10.0
"""Grey levels that compression may change in a window."""
_STRUCTURE = 0.75
"""Root mean square difference of a window, as a share of its own contrast, from which it shows something else."""
_STRAY, _STRAY_PAGE = 0.006, 0.0005
"""Share of differing windows that compression and interpolation leave in copies of photographs and of pages."""
_LITTLE = 0.025
"""Share of differing windows up to which less is asked of the difference to be an overlay."""
_OVERLAID = 0.2
"""Most of an image that captions and watermarks change."""
_CONTAINED = 0.85
"""Share of one image that the other must show: a crop is contained, two views of a scene overlap."""
_OBJECT_INLIERS = 16
_OBJECT, _OBJECT_PAGE = 0.4, 0.1
"""Share of the windows of an object that light, blur and what lies before it may change; of pages and drawings."""
_OBJECT_SHOWN, _SCENE = 0.6, 0.8
"""Share of an object that a scene must show; most of a scene that an object fills."""
_ROUNDING = 2
"""Grey levels by which decoders differ."""
_LEGIBLE = 160
"""Longer side in pixels below which not even that tells small pages apart."""
_SMALL_WINDOW, _SMALL_CONTRAST = 7, 15.0
"""Side in pixels, and contrast in grey levels that counts at least, of the windows of small pages."""
_SMALL_DIFFERENCE = 0.3
"""Largest mean square difference in a window of copies of small pages, as a share of its own contrast. One other word
makes 0.5 and more; compression and interpolation of line drawings and text stay below 0.15."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """How one image lies in another.

    Attributes:
        matrix: (3, 3) homography from pixels of the left detail to those of the right one.
        turned: the right image is mirrored or turned.
        inliers: matched points that follow it; 0 when the images were compared as they lie.
    """

    matrix: Array
    turned: bool
    inliers: int


@dataclass(frozen=True, slots=True)
class Match:
    """What two images are to each other, and how the left one lies in the right one.

    Attributes:
        verdict: from their pixels.
        alignment: None where they could not be aligned, or need not be, since their content is the same.
    """

    verdict: Verdict
    alignment: Alignment | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """What aligned images share.

    Attributes:
        left: share of the left image that the right one shows.
        right: the same of the right one.
        differing: share of the windows, of those both show, that show something else.
        overlaid: share of the differing pixels that a caption or a watermark on one of them explains.
        added: 1 when all differing windows have more contrast in the same image, as an overlay adds it; 0.5 when
            neither image has more.
        side: longer side in pixels of what was compared.
    """

    left: float
    right: float
    differing: float
    overlaid: float
    added: float
    side: int


def align_as_they_lie(left: Look, right: Look) -> Alignment | None:
    """Align whole images by one of the eight ways to turn and mirror; None when their thumbnails are not alike."""
    best = max(((float((left.thumb * _turn(right.thumb, way)).mean()), -way) for way in range(8)), default=(0.0, 0))
    if best[0] < _ALIKE:
        return None
    way = -best[1]
    sides = right.size if way % 2 == 0 else right.size[::-1]
    if abs(np.log(left.size[0] * sides[1] / (left.size[1] * sides[0]))) > 0.03:
        return None  # another shape: cropped, or another image
    return Alignment(_turn_matrix(way, left.size, right.size), way != 0, 0)


def _turn(image: Array, way: int) -> Array:
    turned: Array = np.rot90(image[:, ::-1] if way >= 4 else image, way % 4)
    return turned


def _turn_matrix(way: int, left: tuple[int, int], right: tuple[int, int]) -> Array:
    """From pixels of the left image to those of the right one, which ``_turn`` makes lie as the left one."""
    # Unit squares with the corners as complex numbers would be shorter, but this can be read: u, v of the right image.
    u, v = {
        0: ((1, 0, 0), (0, 1, 0)),
        1: ((0, -1, 1), (1, 0, 0)),
        2: ((-1, 0, 1), (0, -1, 1)),
        3: ((0, 1, 0), (-1, 0, 1)),
    }[way % 4]
    if way >= 4:
        u = (-u[0], -u[1], 1 - u[2])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    unit = np.diag([1 / left[0], 1 / left[1], 1.0]) @ half
    pixels = np.linalg.inv(half) @ np.diag([right[0], right[1], 1.0])
    matrix: Array = pixels @ np.array([u, v, (0, 0, 1)], float) @ unit
    return matrix


def align_by_features(left: Detail, right: Detail) -> Alignment | None:
    """Align images, one of them possibly mirrored, by their local features; None when too few agree."""
    best: Alignment | None = None
    for mirrored, features in ((False, right.features), (True, right.features.mirrored())):
        found = _homography(left, features)
        if found is not None and (best is None or found[1] > best.inliers):
            linear = found[0][:2, :2]
            upright = linear[0, 0] > 0 and abs(linear[0, 1]) < 0.2 * linear[0, 0]
            best = Alignment(found[0], mirrored or not upright, found[1])
    return best


def _homography(left: Detail, features: KeyPoints) -> tuple[Array, int] | None:
    ends = left.features.matches(features)
    if len(ends[0]) < _LEAST_INLIERS:
        return None
    tries = _tries(_LEAST_INLIERS / len(ends[0]))
    matrix, inside = opencv().findHomography(*ends, opencv().RANSAC, _REPROJECTION, maxIters=tries, confidence=0.995)
    if matrix is None:
        return None
    inliers = _distinct(ends, inside)
    return (matrix, inliers) if inliers >= _LEAST_INLIERS and _is_plausible(matrix, left.grey.shape[::-1]) else None


def _distinct(ends: tuple[Array, Array], inside: Array) -> int:
    """Number of matches inside, (m, 1); one point that many others match counts once."""
    chosen = inside.ravel().astype(bool)
    return min(len(np.unique(end[chosen].round(), axis=0)) for end in ends) if chosen.any() else 0


def _tries(share: float) -> int:
    """Samples of four matches of which one is all right with a probability of 0.9999, where this share is right."""
    return min(1000, max(20, round(float(np.log(1e-4) / np.log1p(-(min(share, 0.99) ** 4))))))


def _is_plausible(matrix: Array, size: tuple[int, int]) -> bool:
    """Whether an edit could do this: no strong perspective, no strong squeeze, no extreme scale."""
    corners = np.array([[0, 0, 1], [size[0], 0, 1], [size[0], size[1], 1], [0, size[1], 1]], float)
    weights = (corners @ matrix.T)[:, 2]
    if weights.min() * weights.max() <= 0 or np.abs(weights).max() > 1.35 * np.abs(weights).min():
        return False
    values = np.linalg.svd(matrix[:2, :2] / matrix[2, 2], compute_uv=False)
    return bool(values[0] < 2.0 * values[1] and values[1] > 0.05 and values[0] < 20)


def agreement(left: Array, right: Array, matrix: Array) -> Agreement:
    """Compare aligned images in small windows.

    Args:
        left: (h, w) uint8.
        right: (h, w) uint8.
        matrix: from pixels of the left to pixels of the right one.
    """
    scale = _scale(matrix)
    if scale < 0.999:  # the coarser image is the frame: the other is reduced, nothing is enlarged
        swapped = _agreement(right, left, np.linalg.inv(matrix), 1 / scale)
        return replace(swapped, left=swapped.right, right=swapped.left)
    return _agreement(left, right, matrix, scale)


def _scale(matrix: Array) -> float:
    """Pixels of the right image for one of the left one, a side, near the left one's corner."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2] / matrix[2, 2]))))


def _agreement(left: Array, right: Array, matrix: Array, scale: float) -> Agreement:
    """``agreement``, where the left image is the coarser one."""
    cv2 = opencv()
    own, other, shown, covered = _in_one_frame(left, right, matrix, scale)
    inside = cv2.erode(shown.astype(np.uint8), np.ones((5, 5)), borderValue=1).astype(bool)
    share = float(shown.mean())
    if inside.sum() < 4 * _WINDOW**2:
        return Agreement(share, covered, 1.0, 0.0, 0.5, max(own.shape))
    own, (other, readable) = own.astype(np.float32), _as_toned(other, own, inside)
    inside &= readable
    weight = inside.astype(np.float32)

    def mean(values: Array) -> Array:
        means: Array = cv2.blur(values * weight, (_WINDOW, _WINDOW))[::_STEP, ::_STEP] / filled
        return means

    filled = np.maximum(cv2.blur(weight, (_WINDOW, _WINDOW))[::_STEP, ::_STEP], 1e-3)
    valid = filled > 0.5
    one, two = mean(own), mean(other)
    apart = mean((own - other) ** 2)
    contrasts = [np.maximum(mean(image**2) - level**2, 0) for image, level in ((own, one), (other, two))]
    contrast = np.maximum(*contrasts)
    # A shade that changes slowly, a vignette or a filter, is no difference; another structure is.
    structure = apart - 0.7 * (one - two) ** 2 > _STRUCTURE**2 * np.maximum(contrast, 36.0)
    shade = (np.abs(one - two) > 40) & (apart > 0.5 * contrast)
    differing = valid & (apart > _NOISE**2) & (structure | shade)
    more = (np.sqrt(contrasts[0]) - np.sqrt(contrasts[1]))[differing]
    added = float(max(more.clip(0).sum(), (-more).clip(0).sum()) / max(1e-3, np.abs(more).sum())) if len(more) else 1.0
    overlaid = _overlaid(own, other, inside) if differing.any() else 1.0
    return Agreement(share, covered, float(differing.sum() / max(1, valid.sum())), overlaid, added, max(own.shape))


def _in_one_frame(left: Array, right: Array, matrix: Array, scale: float) -> tuple[Array, Array, Array, float]:
    """The left image, the right one in its place, where the right one lies, and the share of the right one shown."""
    cv2 = opencv()
    height, width = left.shape
    reduced = right
    if scale > 1.05:
        size = max(1, round(right.shape[1] / scale)), max(1, round(right.shape[0] / scale))
        reduced = cv2.resize(right, size, interpolation=cv2.INTER_AREA)
        by = np.array([size[0] / right.shape[1], size[1] / right.shape[0]])
        matrix = np.array([[by[0], 0, (by[0] - 1) / 2], [0, by[1], (by[1] - 1) / 2], [0, 0, 1]]) @ matrix
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    other = cv2.warpPerspective(reduced, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    white = np.full(reduced.shape, 255, np.uint8)
    shown = cv2.warpPerspective(white, matrix, (width, height), flags=flags, borderValue=0) > 127
    back = np.full(left.shape, 255, np.uint8)
    covered = cv2.warpPerspective(back, matrix, reduced.shape[::-1], flags=cv2.INTER_LINEAR, borderValue=0) > 127
    own, other = (cv2.GaussianBlur(image, (0, 0), 1.0) for image in (left, other))
    return own, other, shown, float(covered.mean())


def largest_difference(left: Array, right: Array, matrix: Array) -> float:
    """The largest difference of aligned images in a small window, as a share of the window's own contrast.

    Arguments as for ``agreement``. Of images with other contents some window has 1 and more.
    """
    cv2, scale = opencv(), _scale(matrix)
    if scale < 0.999:
        left, right, matrix, scale = right, left, np.linalg.inv(matrix), 1 / scale
    own, other, shown, _ = _in_one_frame(left, right, matrix, scale)
    own, toned = own.astype(np.float32), _as_toned(other, own.astype(np.float32), shown)[0]

    def mean(values: Array) -> Array:
        means: Array = cv2.blur(values, (_SMALL_WINDOW, _SMALL_WINDOW))
        return means

    def difference(image: Array) -> float:
        contrast = np.maximum(*(mean(each**2) - mean(each) ** 2 for each in (own, image)))
        return float((mean((own - image) ** 2) / np.maximum(contrast, _SMALL_CONTRAST**2)).max())

    return min(difference(other.astype(np.float32)), difference(toned))  # a tone curve has steps, which letters show


def _as_toned(image: Array, like: Array, inside: Array) -> tuple[Array, Array]:
    """An image with the tones of another: of each tone the median there, so that brightness and contrast agree.

    Returns:
        (h, w) float32, and where it can be compared: where brightening has not clipped what the other image shows.
    """
    given, wanted = image[inside], like[inside]
    if len(given) > 60_000:
        given, wanted = given[:: len(given) // 30_000], wanted[:: len(wanted) // 30_000]
    order = np.argsort(given, kind="stable")
    parts = [part for part in np.array_split(order, 24) if len(part)]
    levels = np.array([given[part].mean() for part in parts])
    tones = np.maximum.accumulate([float(np.median(wanted[part])) for part in parts])
    levels, first = np.unique(levels, return_index=True)
    grey = np.arange(256.0)
    table = np.interp(grey, levels, tones[first])
    # Beyond the middles of the darkest and the brightest part the curve goes on as steeply as it comes there.
    slopes = np.diff(tones[first]) / np.diff(levels) if len(levels) > 1 else np.ones(1)
    table += np.minimum(grey - levels[0], 0) * np.clip(slopes[0], 0.5, 2)
    table += np.maximum(grey - levels[-1], 0) * np.clip(slopes[-1], 0.5, 2)
    table = table.clip(0, 255).astype(np.float32)
    toned: Array = table[image]
    if np.abs(tones[first] - levels).mean() < 6:
        return toned, np.ones(image.shape, bool)
    return toned, ((image < 248) & (image > 5)) == ((like < 248) & (like > 5))


def _overlaid(own: Array, other: Array, inside: Array) -> float:
    """Share of the changed pixels that an overlay on one image explains.

    An overlay has few tones (letters, their outline, a box), or lets the image through.
    """
    changed = inside & (np.abs(own - other) > 24)
    if not changed.any():
        return 1.0
    return max(_explained(own[changed], other[changed]), _explained(other[changed], own[changed]))


def _explained(base: Array, top: Array) -> float:
    """Share of the pixels of ``top`` that have one of its two commonest tones, or are a paler ``base``."""
    counts = np.bincount(top.astype(np.int64), minlength=256).astype(float)
    explained = np.zeros(len(top), bool)
    for _ in range(2):
        tone = int(np.convolve(counts, np.ones(25), "same").argmax())
        explained |= np.abs(top - tone) <= 20
        counts[max(0, tone - 20) : tone + 21] = 0
    variance = float(base.var())
    if variance > 25:
        slope = float(((base - base.mean()) * (top - top.mean())).mean()) / variance
        if 0.15 < slope < 1:
            explained |= np.abs(top - top.mean() - slope * (base - base.mean())) <= 14
    return float(explained.mean())


def judge(details: tuple[Detail, Detail], alignment: Alignment) -> Verdict:
    """The verdict on two aligned images of different content."""
    left, right = (detail.grey for detail in details)
    if not alignment.turned and left.shape == right.shape and int(opencv().absdiff(left, right).max()) <= _ROUNDING:
        return Verdict.SAME
    found = agreement(left, right, alignment.matrix)
    page = details[0].page or details[1].page
    if page and found.side < READABLE:
        whole = alignment.inliers == 0 and found.side >= _LEGIBLE
        if not whole or largest_difference(left, right, alignment.matrix) > _SMALL_DIFFERENCE:
            return Verdict.SIMILAR
        return Verdict.EDITED if alignment.turned else Verdict.SAME
    if page and found.differing > _STRAY_PAGE:
        return Verdict.SIMILAR
    if max(found.left, found.right) < (0.97 if page else _CONTAINED) or not _is_overlay(found):
        return Verdict.SIMILAR
    whole = min(found.left, found.right) > 0.97
    return Verdict.SAME if whole and found.differing <= _STRAY and not alignment.turned else Verdict.EDITED


def _is_overlay(found: Agreement) -> bool:
    """Whether an edit explains what differs, if anything does: the subject of a burst or a portrait is no edit."""
    if found.differing <= _STRAY:
        return True
    if found.differing <= _LITTLE:
        return found.overlaid >= 0.75 or found.added >= 0.8
    return found.differing < _OVERLAID and found.added >= 0.85 and found.overlaid + found.added >= 1.5


def verdict(looks: tuple[Look, Look], details: Callable[[], tuple[Detail, Detail]]) -> Verdict:
    """The verdict on two images, from looks at both; few pairs need their details."""
    if looks[0].content != looks[1].content and not may_be_copies(*looks):
        return Verdict.DIFFERENT
    return match(looks, details).verdict


def may_be_copies(left: Look, right: Look) -> bool:
    """Whether their details may show that two images are copies: they are alike as they lie, or a few features are."""
    if left.blank or right.blank or align_as_they_lie(left, right) is not None:
        return True
    return any(_consistent(left, right, mirrored) for mirrored in (False, True))


def _consistent(left: Look, right: Look, mirrored: bool) -> bool:
    """Whether matched features lie alike: turned, scaled and moved together, and mirrored before if need be."""
    one, two = left.features.matches(right.features.mirrored() if mirrored else right.features)
    if len(one) < _LEAST_CONSISTENT:
        return False
    if mirrored:
        two = two * np.array([-1, 1], np.float32)
    matrix, inside = opencv().estimateAffinePartial2D(
        one, two, method=opencv().RANSAC, ransacReprojThreshold=_CONSISTENT_WITHIN * max(right.size), maxIters=300,
        refineIters=0,
    )  # fmt: skip
    if matrix is None or not 0.05 < np.hypot(*matrix[:, 0]) < 20:
        return False
    return _distinct((one, two), inside) >= max(_LEAST_CONSISTENT, _CONSISTENT_SHARE * len(one))


def match(looks: tuple[Look, Look], details: Callable[[], tuple[Detail, Detail]]) -> Match:
    """The verdict on two images by their details, and how they are aligned."""
    if looks[0].content == looks[1].content:
        return Match(Verdict.IDENTICAL, None)
    if any(one.blank for one in looks):
        return Match(Verdict.SIMILAR if all(one.blank for one in looks) else Verdict.DIFFERENT, None)
    lying = align_as_they_lie(*looks)
    if lying is not None and (found := judge(details(), lying)) in COPIES:
        return Match(found, lying)
    aligned = align_by_features(*details()) or lying
    return Match(Verdict.DIFFERENT if aligned is None else judge(details(), aligned), aligned)


def shows(details: tuple[Detail, Detail], similar: Match) -> bool:
    """Whether the right image, which is only similar, shows the flat object that the left image is, in a scene.

    Two frames of one scene show each other whole; here the right image must show more than the left one does.
    """
    alignment = similar.alignment
    if alignment is None or alignment.inliers < _OBJECT_INLIERS:
        return False
    found = agreement(details[0].grey, details[1].grey, alignment.matrix)
    most = _OBJECT_PAGE if details[0].page or details[1].page else _OBJECT
    return found.left > _OBJECT_SHOWN and found.right < _SCENE and found.differing < most
