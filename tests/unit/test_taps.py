"""Where networks are tapped, from shapes worked out by hand."""

from __future__ import annotations

import pytest

from mg_milvus.encoder.taps import OUTPUT, Value, choose_taps, named_taps, series_of
from mg_milvus.errors import EncoderError


def values(*parts: tuple[str, tuple[int, ...]]) -> list[Value]:
    return [Value(name, shape, name.count("."), series_of(name)) for name, shape in parts]


CNN = values(
    ("conv1", (16, 32, 32)), ("layer1.0.conv", (16, 16, 16)), ("layer1", (16, 16, 16)),
    ("layer2.0.conv", (32, 16, 16)), ("layer2.0", (32, 8, 8)), ("layer2", (32, 8, 8)),
    ("layer3.0.conv", (64, 8, 8)), ("layer3", (64, 4, 4)), ("pool", (64, 1, 1)), ("fc", (10,)), (OUTPUT, (10,)),
)  # fmt: skip


def transformer(blocks: int, tokens: int) -> list[Value]:
    inner = [
        part
        for block in range(blocks)
        for part in ((f"blocks.{block}.mlp.fc1", (tokens, 128)), (f"blocks.{block}.mlp", (tokens, 32)),
                     (f"blocks.{block}", (tokens, 32)))
    ]  # fmt: skip
    return values(("patches", (32, 4, 4)), *inner, ("norm", (tokens, 32)), ("head", (24,)), (OUTPUT, (24,)))


def test_a_cnn_is_tapped_at_the_end_of_its_last_three_resolutions() -> None:
    taps = choose_taps(CNN, 64, "net")
    assert [(tap.name, tap.channels, tap.side, tap.layout) for tap in taps.taps] == [
        ("layer1", 16, 16, "nchw"), ("layer2", 32, 8, "nchw"), ("layer3", 64, 4, "nchw"),
    ]  # fmt: skip
    assert taps.kind == "pyramid"


def test_channels_may_come_last() -> None:
    taps = choose_taps(values(("a", (8, 8, 16)), ("b", (4, 4, 32))), 32, "net")
    assert [(tap.channels, tap.side, tap.layout) for tap in taps.taps] == [(16, 8, "nhwc"), (32, 4, "nhwc")]


@pytest.mark.parametrize(("tokens", "blocks", "depths"), [(17, 12, (5, 8, 11)), (16, 4, (1, 2, 3)), (21, 6, (2, 4, 5))])
def test_a_transformer_is_tapped_at_three_depths_and_at_its_vector(
    tokens: int, blocks: int, depths: tuple[int, ...]
) -> None:
    """With a class token, without, and with four registers besides."""
    taps = choose_taps(transformer(blocks, tokens), 64, "net")
    assert [tap.name for tap in taps.taps] == [*(f"blocks.{depth}" for depth in depths), OUTPUT]
    assert [(tap.channels, tap.side) for tap in taps.taps] == [(32, 4)] * 3 + [(24, 1)]
    assert taps.kind == "column"


def test_a_network_without_maps_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"net gives no maps of features.*--taps"):
        choose_taps(values(("fc", (10,)), ("wide", (3, 5, 7))), 64, "net")


def test_layers_that_a_user_names() -> None:
    taps = named_taps(CNN, ["layer2", "fc"], "net")
    assert [(tap.name, tap.channels, tap.side) for tap in taps.taps] == [("layer2", 32, 8), ("fc", 10, 1)]
    with pytest.raises(EncoderError, match=r"net has no layer 'layer9'; it has layer1, layer2, layer3"):
        named_taps(CNN, ["layer9"], "net")
    with pytest.raises(EncoderError, match=r"1 to 8 different layers"):
        named_taps(CNN, ["layer2", "layer2"], "net")
    with pytest.raises(EncoderError, match=r"'odd' of net gives the shape \(3, 5, 7\), expected maps"):
        named_taps(values(("odd", (3, 5, 7))), ["odd"], "net")
