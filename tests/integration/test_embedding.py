"""An encoder as a model function of pymilvus, in a collection that pymilvus alone has made."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from pymilvus import DataType, MilvusClient

from mg_milvus import ImageEmbeddingFunction
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import EncoderError


@pytest.mark.filterwarnings("ignore:pkg_resources is deprecated")
def test_pymilvus_finds_an_image_by_its_code(tmp_path: Path, labelled_photos: Path) -> None:
    function = ImageEmbeddingFunction(granularity="fine")
    photos = sorted((labelled_photos / "disc").glob("*.jpg"))[:8]
    client = MilvusClient(str(tmp_path / "own.db"))
    try:
        schema = client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.BINARY_VECTOR, dim=function.dim)
        indexes = client.prepare_index_params()
        indexes.add_index("vector", index_type="BIN_FLAT", metric_type="HAMMING")
        client.create_collection("own", schema=schema, index_params=indexes)
        codes = function.encode_documents(photos)
        client.insert("own", [{"id": number, "vector": code} for number, code in enumerate(codes)])
        client.load_collection("own")
        found = client.search("own", function.encode_queries([photos[3]]), limit=1)[0][0]
        assert (found["id"], found["distance"]) == (3, 0)
    finally:
        client.close()


def test_codes_are_those_of_the_encoder(labelled_photos: Path, tmp_path: Path) -> None:
    encoder = load_encoder()
    photo = labelled_photos / "disc" / "00.jpg"
    with Image.open(photo) as image:
        expected = encoder.encode([encoder.prepare(image.convert("RGB"))])
    (tmp_path / "mine.safetensors").write_bytes(encoder.to_bytes())
    for granularity, bits in encoder.bits.items():
        function = ImageEmbeddingFunction(tmp_path / "mine.safetensors", granularity)
        assert (function.dim, function([photo])) == (bits, [expected[granularity][0].tobytes()])
    assert ImageEmbeddingFunction(encoder).encode_queries([]) == []
    with pytest.raises(EncoderError, match=r"no granularity 'hue'; it offers coarse, mid, fine"):
        ImageEmbeddingFunction(encoder, "hue")
