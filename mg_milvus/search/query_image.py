"""Query images: decode and crop them, and encode them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import in_steps, signs
from mg_milvus.errors import QueryError
from mg_milvus.images.decode import crop, opening
from mg_milvus.schema.models import FINE, REGIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL import Image

    from mg_milvus.codes import Codes, QueryCodes, RealCodes
    from mg_milvus.encoder.base import Encoder, Pixels
    from mg_milvus.images.decode import Decoded, ImageSource
    from mg_milvus.records import Box
    from mg_milvus.schema.models import Schema
    from mg_milvus.search.query import Regions


MIN_REGION_SIDE = 8
"""Shortest side of a query region in pixels: a smaller one shows nothing that could be recognised."""


VIEWS = ((0.15, 0.15), (0.0, 0.0), (0.3, 0.0), (0.0, 0.3), (0.3, 0.3))
"""Left and top of the views, as shares of the image; each is ``VIEW`` of its width and height. An image that was put
on a page or into a collage is a part of the query image (benchmarks/strange_edits.py)."""
VIEW = 0.7


@dataclass(frozen=True, slots=True)
class QueryArea:
    """Which area of a query image to search with, and for what.

    Attributes:
        crop: (x, y, width, height) in pixels of the upright image; None for the whole.
        regions: as in ``Query``. With it, the regions search with the crop and the other granularities with the whole
            image.
        views: as in ``Query``.
    """

    crop: Box | None = None
    regions: Regions | None = None
    views: bool = False


@dataclass(frozen=True, slots=True)
class QueryImage:
    """A decoded query image.

    Attributes:
        pixels: input of the encoder, of the whole image or of the crop.
        width: of the whole image, upright, in pixels.
        height: of the whole image, upright, in pixels.
        region: what the regions are searched with, as an RGB image; None: they are not.
        regions: as in ``Query``.
        views: inputs of the encoder, of each of the ``VIEWS`` of what ``pixels`` show; empty: there are none.
    """

    pixels: Pixels
    width: int
    height: int
    region: Image.Image | None = None
    regions: Regions | None = None
    views: tuple[Pixels, ...] = ()


WHOLE = QueryArea()


def decode_query_image(
    encoder: Encoder, image: ImageSource, area: QueryArea = WHOLE, max_pixels: int | None = None
) -> QueryImage:
    """Decode a query image for an encoder.

    Raises:
        ImageError: the image cannot be read, or has more than ``max_pixels``.
        QueryError: the crop does not lie inside it, or is too small for a query region.
    """
    least = round(encoder.side / VIEW) if area.views else encoder.side
    with opening(image, least=None if area.crop else least, max_pixels=max_pixels) as decoded:
        return _query_image(encoder, decoded, area)


def _query_image(encoder: Encoder, decoded: Decoded, area: QueryArea) -> QueryImage:
    cropped = decoded.image if area.crop is None else crop(decoded, area.crop)
    views = prepared_views(encoder, cropped if area.regions is None else decoded.image) if area.views else ()
    if area.regions is None:
        return QueryImage(encoder.prepare(cropped), decoded.width, decoded.height, views=views)
    width, height = (decoded.width, decoded.height) if area.crop is None else area.crop[2:]
    if min(width, height) < MIN_REGION_SIDE:
        raise QueryError(
            f"a region of {width}x{height} pixels is too small to be recognised; expected at least {MIN_REGION_SIDE} "
            "pixels on each side"
        )
    return QueryImage(encoder.prepare(decoded.image), decoded.width, decoded.height, cropped, area.regions, views)


def prepared_views(encoder: Encoder, image: Image.Image) -> tuple[Pixels, ...]:
    """The ``VIEWS`` of an image, ready for the encoder."""
    width, height = image.size
    views = []
    for x, y in VIEWS:
        box = (round(x * width), round(y * height), round((x + VIEW) * width), round((y + VIEW) * height))
        views.append(encoder.prepare(image.crop(box) if box[0] < box[2] and box[1] < box[3] else image))
    return tuple(views)


def encode_query_images(encoder: Encoder, images: Sequence[QueryImage]) -> QueryCodes:
    """Encode n query images of which all have views or none, and which search the regions in the same way or do not."""
    inputs = [pixels for image in images for pixels in (image.pixels, *image.views)]
    seen = encoder.real_codes(encoder.features(inputs))
    # (n, 1 or 1 + views, bits): the whole images come first.
    seen = {name: values.reshape(len(images), -1, values.shape[-1]) for name, values in seen.items()}
    viewed = [FINE] if images[0].views else []
    codes = {name: values if name in viewed else values[:, 0] for name, values in seen.items()}
    regions = [image.region for image in images if image.region is not None]
    if regions:
        encode = encoder.shared_region_codes if images[0].regions == "overlap" else encoder.region_codes
        codes[REGIONS] = encode(regions)
    return {name: in_steps(values) for name, values in codes.items()}


def check_codes(schema: Schema, codes: Mapping[str, bytes | Codes]) -> QueryCodes:
    """Stored codes of one image in the form that a search takes: granularity -> (1, bits), for all of the schema.

    Raises:
        QueryError: a granularity is missing, or a code has the wrong length.
    """
    checked: dict[str, RealCodes] = {}
    for name, bits in schema.bits.items():
        if name not in codes:
            raise QueryError(f"there is no code for '{name}'; give one for each of {', '.join(schema.bits)}")
        value = codes[name]
        code = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.asarray(value).reshape(-1)
        if code.dtype != np.uint8 or len(code) != bits // 8:
            raise QueryError(f"the code for {name} has {len(code)} {code.dtype}, expected {bits // 8} uint8 bytes")
        checked[name] = signs(code[None])
    return checked


def whole_codes(schema: Schema, codes: QueryCodes) -> QueryCodes:
    """The codes of one image as a whole, without those of its views and regions: granularity -> (1, bits).

    Raises:
        QueryError: a granularity is missing, or its codes have another length.
    """
    checked: dict[str, RealCodes] = {}
    for name, bits in schema.bits.items():
        values = np.asarray(codes.get(name, ()), np.float32)
        if values.ndim not in {2, 3} or values.shape[0] != 1 or values.shape[-1] != bits:
            raise QueryError(f"the codes for {name} have the shape {values.shape}, expected (1, {bits}) or with views")
        checked[name] = values.reshape(1, -1, bits)[:, 0]
    return checked
