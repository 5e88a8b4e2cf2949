"""Encoders: files, fingerprints, determinism, adaptation, and every backbone of the table."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mg_milvus.codes import hamming
from mg_milvus.encoder.backbones import BACKBONES
from mg_milvus.encoder.base import Encoder, input_size
from mg_milvus.encoder.hash_heads import DiffusionHead, Head
from mg_milvus.encoder.load import load_encoder, untrained_encoder
from mg_milvus.encoder.networks import build, channels_first
from mg_milvus.encoder.torch_runtime import TorchEncoder, gem, has_bfloat16, mirrored, pyramid, resolve_device
from mg_milvus.errors import EncoderError, ImageError, WeightsNotFoundError
from mg_milvus.ingest.fit_heads import FitOptions, FitReport, fit_encoder
from tests.conftest import KINDS, kind_of_image, make_photos


@pytest.fixture(scope="module")
def builtin() -> Encoder:
    return load_encoder()


@pytest.fixture(scope="module")
def prepared(builtin: Encoder) -> list[np.ndarray]:
    """Nine images of three aspects, mixed."""
    sizes = [(96, 64), (64, 96), (80, 80)]
    return [builtin.prepare(kind_of_image(KINDS[i % 3], i, sizes[i % 3])) for i in range(9)]


def test_gem_and_pyramid_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [3.0, -4.0]]]])
    assert gem(maps).item() == pytest.approx(((1 + 8 + 27 + 1e-18) / 4) ** (1 / 3), rel=1e-4)
    assert pyramid(maps, 2).tolist() == [[1, 2, 3, -4]]
    assert pyramid(maps, 1).tolist() == [[0.5]]


def test_mirrored_cells_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 3.0, 2.0], [5.0, 4.0, 5.0], [9.0, 1.0, 6.0]]]])
    sums, differences = [[3, 6], [10, 8], [15, 2]], [[1, 0], [0, 0], [3, 0]]
    expected = torch.tensor([sums, differences]).flatten().tolist()
    assert mirrored(maps, 3)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert mirrored(maps.flip(3), 3)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert mirrored(torch.ones(2, 5, 4, 7), 2).shape == (2, 20)


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [
        ((100, 100), 16, (112, 112)),
        ((384, 256), 16, (144, 96)),
        ((256, 384), 16, (96, 144)),
        ((10_000, 1), 16, (160, 80)),
        ((1, 10_000), 16, (80, 160)),
        ((384, 256), 0, (112, 112)),
    ],
)
def test_the_aspect_is_kept_within_reason(size: tuple[int, int], multiple: int, expected: tuple[int, int]) -> None:
    assert input_size(size, 112, multiple) == expected


def test_what_ships_is_small_and_offers_three_granularities(builtin: Encoder) -> None:
    assert dict(builtin.bits) == {"coarse": 64, "mid": 128, "fine": 256}
    assert (builtin.backbone, builtin.adapted_on, builtin.ancestors) == ("efficientnet_lite0", 0, ())
    assert len(builtin.to_bytes()) <= 16_000_000


def test_the_shipped_file_is_what_it_says(builtin: Encoder) -> None:
    again = load_encoder(builtin.to_bytes())
    assert again.fingerprint == builtin.fingerprint


@pytest.mark.parametrize("bfloat16", [True, False])
def test_a_code_does_not_depend_on_the_batch(
    builtin: Encoder, prepared: list[np.ndarray], bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mg_milvus.encoder.torch_runtime.has_bfloat16", lambda _: bfloat16)
    builtin = TorchEncoder(builtin.state, device="cpu")
    # Without AMX bfloat16 takes many times as long: fewer images, and a part of each.
    smaller = [image[:, : image.shape[1] // 32 * 16, : image.shape[2] // 32 * 16] for image in prepared[:4]]
    images, sizes = (smaller, (1, 3)) if bfloat16 else (prepared, range(1, 9))
    whole = builtin.encode(images)
    for size in sizes:
        parts = [builtin.encode(images[i : i + size]) for i in range(0, len(images), size)]
        for name, codes in whole.items():
            assert (np.concatenate([part[name] for part in parts]) == codes).all(), (name, size)
    backwards = builtin.encode(images[::-1])
    assert all((backwards[name][::-1] == codes).all() for name, codes in whole.items())


def test_codes_have_the_bits_they_say(builtin: Encoder, prepared: list[np.ndarray]) -> None:
    codes = builtin.with_bits({"fine": 40, "coarse": 8}).encode(prepared)
    assert {name: (values.shape, values.dtype) for name, values in codes.items()} == {
        "fine": ((9, 5), np.uint8),
        "coarse": ((9, 1), np.uint8),
    }


def test_adapted_heads_tell_the_collections_kinds_apart(builtin: Encoder) -> None:
    images = [builtin.prepare(kind_of_image(kind, i)) for kind in KINDS for i in range(20)]
    features = builtin.features(images)
    bits = {"coarse": 64, "mid": 128, "fine": 256}
    adapted = builtin.adapted(features, bits)
    kinds = np.repeat(np.arange(3), 20)

    def nearest_is_of_its_kind(encoder: Encoder, name: str) -> float:
        codes = encoder.codes(features)[name]
        distances = hamming(codes, codes) + 1000 * np.eye(60, dtype=np.int32)
        return float((kinds[distances.argmin(axis=1)] == kinds).mean())

    assert nearest_is_of_its_kind(adapted, "mid") >= 0.7  # chance is a third
    assert adapted.adapted_on == 60
    assert adapted.ancestors == (builtin.fingerprint,)
    assert adapted.fingerprint not in (builtin.fingerprint, None)
    again = load_encoder(adapted.to_bytes())
    assert again.fingerprint == adapted.fingerprint
    assert all((again.codes(features)[g] == adapted.codes(features)[g]).all() for g in bits)


def test_an_unknown_granularity_is_refused(builtin: Encoder) -> None:
    with pytest.raises(EncoderError, match="no granularity 'hue'; it offers coarse, mid, fine"):
        builtin.with_bits({"hue": 64})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an encoder file or is damaged"),
        (b"GIF89a not tensors", "not an encoder file or is damaged"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "holds tensors but is not an encoder file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(EncoderError, match=message):
        load_encoder(file)


@pytest.mark.parametrize("place", [0.01, 0.5, 0.99])
def test_a_damaged_file_is_noticed(builtin: Encoder, place: float) -> None:
    data = bytearray(builtin.to_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + int(place * (len(data) - start))] ^= 0xFF
    with pytest.raises(EncoderError, match=r"fingerprint .* damaged"):
        load_encoder(bytes(data))
    with pytest.raises(EncoderError, match="damaged"):
        load_encoder(bytes(data[: len(data) // 2]))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(EncoderError, match=r"there is no encoder file nowhere\.safetensors"):
        load_encoder("nowhere.safetensors")


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(EncoderError, match="unknown device 'tpu'; expected auto, cpu, cuda or mps"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(EncoderError, match="no cuda; use --device auto or cpu"):
        load_encoder(device="cuda").features([np.zeros((3, 112, 112), np.uint8)])


def test_bfloat16_changes_few_bits(
    builtin: Encoder, prepared: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_bfloat16(torch.device("mps")) is False
    monkeypatch.setattr("mg_milvus.encoder.torch_runtime.has_bfloat16", lambda _: True)
    builtin = TorchEncoder(builtin.state, device="cpu")
    half = builtin.encode(prepared)
    monkeypatch.setattr("mg_milvus.encoder.torch_runtime.has_bfloat16", lambda _: False)
    full = builtin.encode(prepared)
    flipped = sum(int(np.diag(hamming(half[g], full[g])).sum()) for g in half)
    assert flipped / (9 * 448) < 0.02


def untrained_weights(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights, with batch statistics of noise: without, deep features would not vary at all."""
    torch.manual_seed(seed)
    network = build(name).train()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:
        module.momentum = None
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
    if norms:
        with torch.no_grad():
            network(torch.randn(2, 3, 224, 224))
    return network.state_dict()


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_can_be_fitted(name: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in untrained_weights(name).items()}, file)
    encoder = untrained_encoder(name, file)
    images = [encoder.prepare(kind_of_image(KINDS[i % 3], i)) for i in range(4)]
    features = encoder.features(images)
    assert len(features["fine"][0]) > len(features["mid"][0]) >= len(features["coarse"][0])
    in_torch = TorchEncoder(encoder.state, device="cpu")
    row, maps = BACKBONES[name], in_torch._network(torch.zeros(1, 3, 224, 224))
    assert tuple(channels_first(maps[stage], row.layout).shape[1] for stage in row.stages) == row.channels
    assert all(np.linalg.norm(values, axis=1) == pytest.approx(np.ones(4), abs=1e-3) for values in features.values())
    fitted = encoder.adapted(features, {"coarse": 8, "mid": 16, "fine": 16})
    codes, expected = fitted.encode(images[:1]), fitted.codes(features)
    assert {g: own.shape for g, own in expected.items()} == {"coarse": (4, 1), "mid": (4, 2), "fine": (4, 2)}
    assert {g: own.shape for g, own in codes.items()} == {"coarse": (1, 1), "mid": (1, 2), "fine": (1, 2)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, list[np.ndarray]]:
    """An encoder of random weights without heads, and 24 images for it."""
    file = tmp_path_factory.mktemp("small") / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in untrained_weights("resnet18").items()}, file)
    encoder = untrained_encoder("resnet18", file)
    return encoder, [encoder.prepare(kind_of_image(KINDS[i % 3], i)) for i in range(24)]


def test_heads_fitted_to_a_collection_survive_the_file(small: tuple[TorchEncoder, list[np.ndarray]]) -> None:
    encoder, images = small
    features = encoder.features(images)
    fitted = encoder.adapted(features, {"coarse": 16, "mid": 24, "fine": 32})
    kinds = {name: type(head) for name, head in fitted.state.heads.items()}
    assert kinds == {"coarse": DiffusionHead, "mid": DiffusionHead, "fine": Head}
    again = load_encoder(fitted.to_bytes())
    assert again.fingerprint == fitted.fingerprint
    assert all((again.codes(features)[g] == codes).all() for g, codes in fitted.codes(features).items())


def test_statistics_to_ship_know_how_edits_move_features(small: tuple[TorchEncoder, list[np.ndarray]]) -> None:
    encoder, images = small
    plain = encoder.features(images)
    dark = encoder.features([image // 2 for image in images])
    bits = {"coarse": 16, "fine": 64}
    unaware = encoder.with_statistics(plain, bits)
    aware = load_encoder(encoder.with_statistics(plain, bits, {"fine": dark["fine"] - plain["fine"]}).to_bytes())

    def moved(shipped: Encoder, name: str) -> int:
        return int(np.diag(hamming(shipped.codes(plain)[name], shipped.codes(dark)[name])).sum())

    assert (aware.adapted_on, aware.ancestors, dict(aware.bits)) == (0, (), bits)
    assert moved(aware, "fine") < 0.8 * moved(unaware, "fine")
    assert moved(aware, "coarse") == moved(unaware, "coarse")
    adapted = [shipped.adapted(plain, bits) for shipped in (unaware, aware)]
    assert moved(adapted[1], "fine") < 0.8 * moved(adapted[0], "fine")


def keep_weights(home: Path, seed: int = 0) -> None:
    """Weights of resnet18 in a cache of torchvision's, as if they had been downloaded."""
    file = home / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(untrained_weights("resnet18", seed), file)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitReport]:
    """A folder with weights, 60 images and one that is broken, and the encoder fitted to them; nobody changes it."""
    folder = tmp_path_factory.mktemp("fitted")
    keep_weights(folder / "hub")
    photos = make_photos(folder / "photos")
    (photos / "broken.jpg").write_bytes(b"no image")
    options = FitOptions(backbone="resnet18", bits={"coarse": 16, "fine": 32})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder / "hub"))
        return folder, fit_encoder(photos, folder / "out.safetensors", options)


def test_fit_writes_an_encoder_that_loads(fitted: tuple[Path, FitReport]) -> None:
    folder, report = fitted
    encoder = load_encoder(folder / "out.safetensors")
    assert (report.images, [f.path for f in report.failures]) == (60, [str(folder / "photos" / "broken.jpg")])
    assert (encoder.fingerprint, encoder.backbone, dict(encoder.bits)) == (
        report.fingerprint, "resnet18", {"coarse": 16, "fine": 32},
    )  # fmt: skip
    assert report.bytes == (folder / "out.safetensors").stat().st_size
    assert sorted(p.name for p in folder.iterdir()) == ["hub", "out.safetensors", "photos"]


def test_heads_alone_find_their_backbone(
    fitted: tuple[Path, FitReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = fitted
    encoder = load_encoder(folder / "out.safetensors")
    heads = encoder.to_bytes(limit=10_000_000)
    assert len(heads) < 5_000_000
    monkeypatch.setenv("TORCH_HOME", str(folder / "hub"))
    assert load_encoder(heads).fingerprint == encoder.fingerprint
    keep_weights(tmp_path, seed=1)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EncoderError, match="other weights of resnet18 are on this machine"):
        load_encoder(heads)


def test_offline_the_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(WeightsNotFoundError, match=r"resnet18-f37072fd\.pth and put it into .*checkpoints.*'builtin'"):
        untrained_encoder("resnet18", None)


def test_images_that_are_all_the_same_cannot_be_fitted(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in untrained_weights("resnet18").items()}, file)
    encoder = untrained_encoder("resnet18", file)
    same = encoder.features([encoder.prepare(kind_of_image("disc", 1))] * 4)
    with pytest.raises(EncoderError, match="the features do not vary"):
        encoder.adapted(same, {"coarse": 8})


def test_bad_fits_are_refused(tmp_path: Path) -> None:
    few = make_photos(tmp_path / "few", per_kind=2)
    out = tmp_path / "out.safetensors"
    with pytest.raises(ImageError, match="6 different readable images, expected at least 50"):
        fit_encoder(few, out)
    with pytest.raises(EncoderError, match="unknown backbone 'resnet19'; known are efficientnet_lite0, "):
        fit_encoder(few, out, FitOptions(backbone="resnet19"))
    (tmp_path / "w.pth").write_bytes(b"nonsense")
    with pytest.raises(EncoderError, match="is not a file of weights"):
        fit_encoder(few, out, FitOptions(backbone="resnet18", weights=tmp_path / "w.pth"))
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(EncoderError, match="do not fit the backbone resnet18"):
        fit_encoder(few, out, FitOptions(backbone="resnet18", weights=tmp_path / "w.safetensors"))
    assert not out.exists()


def test_fit_over_the_builtin_adapts_it(tmp_path: Path, builtin: Encoder) -> None:
    report = fit_encoder(make_photos(tmp_path / "photos"), tmp_path / "out.safetensors")
    encoder = load_encoder(tmp_path / "out.safetensors")
    assert (encoder.ancestors, encoder.adapted_on) == ((builtin.fingerprint,), 60)
    assert report.fingerprint == encoder.fingerprint
    with pytest.raises(EncoderError, match="cannot be written"):
        fit_encoder(tmp_path / "photos", tmp_path / "missing" / "out.safetensors")


@pytest.mark.parametrize("method", ["itq", "lsh"])
def test_baselines_are_kept_by_collections(tmp_path: Path, builtin: Encoder, method: str) -> None:
    photos, out = make_photos(tmp_path / "photos"), tmp_path / "out.safetensors"
    report = fit_encoder(photos, out, FitOptions(bits={"coarse": 32}, method=method))  # type: ignore[arg-type]
    fitted = load_encoder(out)
    assert fitted.fingerprint == report.fingerprint
    assert fitted.adapted_on == report.images == 60
    sample = {"coarse": np.random.default_rng(0).random((60, 320), np.float32)}
    assert fitted.adapted(sample, {"coarse": 32}).fingerprint == fitted.fingerprint
    with pytest.raises(EncoderError, match="made for 32 bits of 'coarse', the schema asks for 64"):
        fitted.adapted(sample, {"coarse": 64})
    with pytest.raises(EncoderError, match="were trained and are kept; only the methods itq and lsh"):
        fit_encoder(photos, tmp_path / "again.safetensors", FitOptions(backbone=str(out), bits={"coarse": 32}))
    again = fit_encoder(
        photos, tmp_path / "again.safetensors", FitOptions(backbone=str(out), bits={"coarse": 16}, method="lsh")
    )
    assert load_encoder(tmp_path / "again.safetensors").fingerprint == again.fingerprint
