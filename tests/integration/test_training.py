"""Training: data, variations, schedule, what is learned, what is kept, what is refused."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import adjusted_rand_score

from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import EncoderError, LabelError, TrainingError
from mg_milvus.evaluation.labels import read_labelled
from mg_milvus.training import trainer as trainer_module
from mg_milvus.training.checkpoint import load_checkpoint
from mg_milvus.training.config import Augmentation, TrainingConfiguration
from mg_milvus.training.data import Augmenter, Batches, ImageCache, mixed, normalised
from mg_milvus.training.network import HashingNetwork, HashLayer
from mg_milvus.training.train import pseudo_labels, spherical_kmeans, split, train
from mg_milvus.training.trainer import MovingAverage, held_out_metrics, rate_at
from tests.conftest import make_photos
from tests.in_process import mgm
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

QUIET: dict[str, Any] = dict.fromkeys(
    ("mirror", "colour", "grey", "blur", "jpeg", "rotation", "text", "erasing", "style"), 0
)
PLAIN = Augmentation(area=(1.0, 1.0), **QUIET)


def small(**settings: Any) -> TrainingConfiguration:
    """A training of seconds: images of 32 pixels, the small net, one code of classes."""
    content: dict[str, object] = {
        "backbone": "smallnet", "init": "scratch", "bits": {"mid": 16}, "side": 32,
        "phases": [{"epochs": 2, "sides": [16]}], "optimisation": {"batch": 16, "rate": 0.05}, "held_out": 0.2,
        "augmentation": {"area": [1, 1], **QUIET},
    }  # fmt: skip
    return TrainingConfiguration.of(content | settings)


LEARNING = small(phases=[{"epochs": 3, "sides": [32]}], optimisation={"batch": 12, "rate": 0.1, "average": 0.8})


def coloured(folder: Path) -> Path:
    """20 noisy images each that are rather red, green or blue."""
    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 160, (32, 32, 3))
            pixels[..., channel] += 90
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def cache_of(folder: Path, side: int = 40) -> ImageCache:
    images = read_labelled(folder).images
    cache, _, _ = ImageCache.fill(images, side, workers=1, max_pixels=10**6, report=lambda *_: None)
    return cache


# Data


def test_the_cache_keeps_aspect_and_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (10, 20), (200, 30, 60)).save(tmp_path / "a.png")
    Image.new("RGB", (400, 100), (1, 2, 3)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"broken")
    cache, kept, failures = ImageCache.fill(
        read_labelled(tmp_path).images, 50, workers=2, max_pixels=10**6, report=lambda *_: None,
    )  # fmt: skip
    with cache:
        assert kept == [0, 1]
        assert [failure.path for failure in failures] == [str(tmp_path / "c.png")]
        assert cache[0].shape == (20, 10, 3), "small images stay as they are"
        assert (cache[0] == (200, 30, 60)).all()
        assert cache[1].shape == (25, 100, 3), "2,500 pixels, 4:1"
        assert (cache[1] == (1, 2, 3)).all()


def test_a_batch_depends_on_seed_epoch_and_place_alone(photos: Path) -> None:
    settings = small(augmentation={}, phases=[{"epochs": 3, "sides": [16, 24]}])
    with cache_of(photos) as cache:
        rows = np.arange(len(cache))
        batches = Batches(cache, rows, settings, 1, 2)
        torch.manual_seed(99)
        again = Batches(cache, rows, settings, 1, 2)
        assert torch.equal(batches[2].views[1], again[2].views[1])
        assert not torch.equal(batches[0].views[0], batches[0].views[1]), "two views differ"
        other = Batches(cache, rows, settings, 2, 2)
        assert not torch.equal(other[0].rows, batches[0].rows)
        seen = torch.cat([batches[i].rows for i in range(len(batches))])
        assert len(seen.unique()) == len(seen) == 48, "no image twice; the last 12 of 60 fill no batch"
        assert {batches[i].views[0].shape[-1] for i in range(3)} <= {16, 24}


def test_both_views_of_a_row_are_the_same_image(photos: Path) -> None:
    with cache_of(photos) as cache:
        batch = Batches(cache, np.arange(len(cache)), small(), 0, 2)[0]
        assert torch.equal(*batch.views), "without variations the two views must be equal, row by row"
        expected = Augmenter(PLAIN, "smallnet")([cache[int(row)] for row in batch.rows], 16)
        assert torch.equal(batch.views[0], expected)


# Variations


def test_plain_variation_is_resizing_and_normalising() -> None:
    found = Augmenter(PLAIN, "smallnet")([np.full((20, 30, 3), 255, np.uint8)], 16)
    assert found.shape == (1, 3, 16, 16)
    expected = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found[0, :, 3, 5].numpy(), expected, rtol=1e-5)


def test_mirroring_and_shifting_move_pixels() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8] = 255
    flipped = Augmenter(Augmentation(area=(1.0, 1.0), **(QUIET | {"mirror": 1.0})), "smallnet")([image], 16)
    assert torch.equal(flipped, normalised(torch.from_numpy(image).permute(2, 0, 1)[None], "smallnet").flip(-1))
    torch.manual_seed(0)
    shifted = Augmenter(Augmentation(area=(1.0, 1.0), shift=3, **QUIET), "smallnet")([image] * 40, 16)
    edges = {int((row[0, 8] > 0).sum()) for row in shifted}
    assert edges == set(range(5, 12)), "shifts by -3 to 3"


@pytest.mark.parametrize("name", ["colour", "grey", "blur", "jpeg", "rotation", "text", "erasing", "style", "together"])
def test_every_variation_changes_images_and_keeps_their_shape(name: str) -> None:
    torch.manual_seed(3)
    images = [np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8) for i in range(8)]
    plain = Augmenter(PLAIN, "smallnet")(images, 24)
    found = Augmenter(Augmentation(area=(1.0, 1.0), **(QUIET | {name: 1.0})), "smallnet")(images, 24)
    assert found.shape == plain.shape
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    if name == "grey":
        scaled = found * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        scaled += torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        assert (scaled.amax(1) - scaled.amin(1)).max() < 1e-5


def test_crops_keep_the_share_of_the_area() -> None:
    torch.manual_seed(0)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3)).copy()
    found = Augmenter(Augmentation(area=(0.25, 0.25), **QUIET), "smallnet")([ramp] * 30, 16)
    widths = (found[:, 0, 0, -1] - found[:, 0, 0, 0]) * 0.229 * 255 / 4 * 16 / 15
    assert ((widths > 64 * 0.5 * 0.8) & (widths < 64 * 0.5 * 1.25)).all(), "half the side, by up to 3:4"


def test_mixup_blends_images_and_labels_alike() -> None:
    x, labels = torch.eye(4).reshape(4, 1, 2, 2), {"classes": torch.eye(4)}
    found, mixed_labels = mixed(x, labels, np.random.default_rng(2))
    torch.testing.assert_close(found.reshape(4, 4), mixed_labels["classes"])
    torch.testing.assert_close(mixed_labels["classes"].sum(1), torch.ones(4))
    assert (mixed_labels["classes"] > 0).sum() > 4


# Schedule, average, layers


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    settings = small(optimisation={"rate": 0.2, "warm_up": 0.1})
    found = [rate_at(progress, settings.optimisation) for progress in (0.05, 0.1, 0.55, 1.0)]
    np.testing.assert_allclose(found, [0.1, 0.2, 0.1, 0.0], atol=1e-12)
    assert rate_at(0.0, settings.optimisation) > 0


def test_the_average_is_an_exponential_one() -> None:
    layer = torch.nn.Linear(1, 1)
    average = MovingAverage(layer, 0.9)
    expected = layer.weight.item()
    for step in range(30):
        with torch.no_grad():
            layer.weight.fill_(float(step))
        average.update(layer, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_hash_layers_centre_every_bit() -> None:
    torch.manual_seed(0)
    codes = HashLayer(6, 8)(torch.randn(500, 6) * 3 + 5)
    torch.testing.assert_close(codes.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(codes.std(0), torch.ones(8), atol=1e-2, rtol=0)


# Clusters and splits


def test_clusters_find_well_separated_groups() -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((5, 20)) * 4
    truth = np.repeat(np.arange(5), 30)
    features = (centres[truth] + random.standard_normal((150, 20))).astype(np.float32)
    assert adjusted_rand_score(truth, spherical_kmeans(features, 5, 1)) > 0.75
    assert len(set(spherical_kmeans(features, 140, 1).tolist())) == 140, "no cluster is empty"
    levels = pseudo_labels(features, 1)
    assert levels["classes"].shape == (150, 12)
    assert levels["groups"].shape == (150, 3)


def test_the_split_is_stratified_and_deterministic() -> None:
    classes = np.eye(4, dtype=bool)[np.repeat(np.arange(4), [100, 50, 10, 1])]
    rows, held = split(classes, 161, 0.2, 3)
    assert sorted([*rows, *held]) == list(range(161))
    assert np.bincount(classes[held].argmax(1), minlength=4).tolist() == [20, 10, 2, 0]
    assert split(classes, 161, 0.2, 3)[1].tolist() == held.tolist()
    assert len(split(None, 100_000, 0.5, 0)[1]) <= 2_000


def test_held_out_metrics_by_hand() -> None:
    codes = {"mid": np.array([[0], [0], [255], [255]], np.uint8)}
    apart = {"classes": np.eye(2, dtype=bool)[[0, 0, 1, 1]]}
    assert held_out_metrics(codes, apart, 4) == {"map_mid": 1, "held_out": 1}
    # Asked for the first: the second, of the other class, at 0, the relevant third at 8 with the fourth, so at
    # rank 2 or 3: (1/2 + 1/3) / 2.
    crossed = {"classes": np.eye(2, dtype=bool)[[0, 1, 0, 1]]}
    assert held_out_metrics(codes, crossed, 4)["held_out"] == pytest.approx(5 / 12)
    # One alone is held out, and finds the trained image of its class: at 0 beside the other one: (1 + 1/2) / 2.
    mixed_up = {"mid": np.array([[0], [0], [0], [255]], np.uint8)}
    assert held_out_metrics(mixed_up, crossed, 1)["held_out"] == pytest.approx(3 / 4)
    assert held_out_metrics(codes, {"classes": np.eye(4, dtype=bool)}, 1)["held_out"] == 0, "nothing to find"


# Whole trainings


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 images in three folders: no whole training here needs more.

    The statistics that are written beside the heads are of 16 of them, two of which are edited: with all, most of a
    training here would be that.
    """
    monkeypatch.setattr(trainer_module, "STATISTICS_SAMPLE", 16)
    monkeypatch.setattr(trainer_module, "EDITED_SAMPLE", 2)
    return make_photos(tmp_path / "photos", 10)


def test_training_learns_and_the_file_is_an_encoder(tmp_path: Path) -> None:
    photos = coloured(tmp_path / "photos")
    told: list[Mapping[str, float]] = []
    out = tmp_path / "mine.safetensors"
    report = train(photos, out, LEARNING, device="cpu", on_epoch=told.append)
    assert report.images + report.held_out == 60
    assert report.labels == {"classes": 3, "groups": 3}
    assert [record["epoch"] for record in told] == list(range(1, report.epochs + 1))
    assert told[-1]["mid"] < told[0]["mid"], "the loss falls"
    encoder = load_encoder(out)
    assert encoder.fingerprint == report.fingerprint
    assert dict(encoder.bits) == {"mid": 16}
    images = read_labelled(photos)
    assert images.classes is not None
    codes = encoder.encode([encoder.prepare(Image.open(found.path).convert("RGB")) for found in images.images])
    figures = held_out_metrics(codes, {"classes": images.classes.one_hot()}, len(images))
    assert figures["map_mid"] > 0.9, "chance is 0.33"


def test_learned_codes_are_those_of_the_network(few: Path, tmp_path: Path) -> None:
    """The file's linear head must give the signs that the network's normalised hash layer gives."""
    out = tmp_path / "e.safetensors"
    train(few, out, small(), device="cpu")
    best = {k[5:]: v for k, v in load_checkpoint(out.with_name("e.checkpoint.safetensors"))[0].items()
            if k.startswith("best.")}  # fmt: skip
    encoder = load_encoder(out)
    features = np.random.default_rng(0).standard_normal((50, best["heads.mid.linear.weight"].shape[1]))
    relaxed = features @ best["heads.mid.linear.weight"].double().numpy().T
    expected = np.packbits(relaxed > best["heads.mid.norm.running_mean"].double().numpy(), axis=1)
    found = encoder.codes({"mid": features.astype(np.float32)})["mid"]
    assert np.unpackbits(found ^ expected).mean() < 0.005, "but for the rounding to half precision"


def test_learned_heads_stay_what_they_are(few: Path, tmp_path: Path) -> None:
    train(few, tmp_path / "e.safetensors", small(phases=[{"epochs": 1, "sides": [16]}]), device="cpu")
    encoder = load_encoder(tmp_path / "e.safetensors")
    sample = {"mid": np.random.default_rng(0).random((60, 512), np.float32)}
    assert encoder.adapted(sample, {"mid": 16}).fingerprint == encoder.fingerprint
    with pytest.raises(EncoderError, match="made for 16 bits of 'mid', the schema asks for 32"):
        encoder.adapted(sample, {"mid": 32})


def test_without_labels_clusters_teach(few: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, image in enumerate(sorted(few.rglob("*.jpg"))):
        image.rename(flat / f"{number}.jpg")
    settings = small(bits={"coarse": 8, "mid": 16, "fine": 32}, phases=[{"epochs": 1, "sides": [16]}])
    report = train(flat, tmp_path / "e.safetensors", settings, device="cpu")
    assert report.labels == {}
    assert {"coarse", "mid", "fine"} <= set(report.history[0])
    assert dict(load_encoder(tmp_path / "e.safetensors").bits) == {"coarse": 8, "mid": 16, "fine": 32}


def test_several_labels_and_every_loss(few: Path, tmp_path: Path) -> None:
    lines = ["path,label"]
    for number, image in enumerate(sorted(few.rglob("*.jpg"))):
        lines.append(f"{image.relative_to(few)},{image.parent.name}{'|odd' if number % 2 else ''}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    for loss in ("orthohash", "csq", "dsh", "hashnet", "greedyhash"):
        settings = small(supervised=loss, phases=[{"epochs": 1, "sides": [16]}])
        report = train(few, tmp_path / f"{loss}.safetensors", settings, labels=tmp_path / "labels.csv", device="cpu")
        assert report.labels["classes"] == 4
        assert math.isfinite(report.history[0]["mid"])


def test_adaptive_encoders_keep_no_learned_heads(few: Path, tmp_path: Path) -> None:
    weights = {"coarse": 0, "mid": 0, "fine": 1, "softmax": 1}
    bits = {"coarse": 16, "mid": 16, "fine": 32}
    settings = small(heads="adaptive", weights=weights, bits=bits, phases=[{"epochs": 1, "sides": [16]}])
    report = train(few, tmp_path / "e.safetensors", settings, device="cpu")
    assert {"softmax", "fine"} <= set(report.history[0])
    assert "mid" not in report.history[0]
    encoder = load_encoder(tmp_path / "e.safetensors")
    assert encoder.with_bits({"mid": 64}).bits == {"mid": 64}, "which only heads that adapt can"


def test_blending_keeps_a_share_of_the_first_weights(few: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    settings = small(heads="adaptive", weights={"mid": 0, "softmax": 1}, phases=[{"epochs": 1, "sides": [16]}])
    train(few, first, settings, device="cpu")
    out = tmp_path / "e.safetensors"
    train(few, out, settings.changed({"init": str(first), "blend": 0.25}), device="cpu")
    before, after = load_file(first), load_file(out)
    best = load_file(tmp_path / "e.checkpoint.safetensors")
    name = "stage2.conv.weight"
    expected = 0.25 * before[f"backbone.{name}"].float() + 0.75 * best[f"best.backbone.{name}"]
    torch.testing.assert_close(after[f"backbone.{name}"].float(), expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(TrainingError, match="set heads to adaptive"):
        small(blend=0.5)


def test_frozen_parts_do_not_move(few: Path, tmp_path: Path) -> None:
    settings = small(freeze=("stem", "stage1"), phases=[{"epochs": 1, "sides": [16]}])
    train(few, tmp_path / "e.safetensors", settings, device="cpu")
    tensors, _ = load_checkpoint(tmp_path / "e.checkpoint.safetensors")
    moved = {k for k in tensors if k.startswith("network.backbone.") and not torch.equal(
        tensors[k], tensors[k.replace("network.", "average.")])}  # fmt: skip
    assert any(".stage2." in name for name in moved)
    assert not any(".stem." in name or ".stage1." in name for name in moved)
    with pytest.raises(TrainingError, match=r"freeze 'head' names no module.*stem, stage1"):
        train(few, tmp_path / "f.safetensors", small(freeze=("head",)), device="cpu")


def test_a_frozen_backbone_sees_each_variation_once(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "VARIATIONS", 2)
    seen: list[int] = []
    features = HashingNetwork.features

    def counted(self: HashingNetwork, x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(len(x))
        return features(self, x)

    monkeypatch.setattr(HashingNetwork, "features", counted)
    settings = small(freeze=("backbone",), phases=[{"epochs": 4, "sides": [16]}], bits={"mid": 16, "fine": 16})
    steps: list[trainer_module.StepReport] = []
    report = train(few, tmp_path / "whole.safetensors", settings, device="cpu", on_step=steps.append)
    batches, rest = divmod(report.images, settings.optimisation.batch)
    assert rest, "some images are left out of a variation"
    # Two rows tell the network its widths; two views of every batch of two variations, whatever the epochs.
    assert sum(seen) == 2 + 2 * 2 * batches * settings.optimisation.batch
    assert [bool(step.losses) for step in steps] == 2 * ([False] * batches + [True] * batches) + 2 * batches * [True]
    first, last = report.history[0], report.history[-1]
    assert last["mid"] < first["mid"]

    train(few, tmp_path / "stopped.safetensors", settings, device="cpu", stop_after=3)
    train(few, tmp_path / "stopped.safetensors", settings, device="cpu", resume=True)
    assert (tmp_path / "stopped.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_resumed_training_gives_the_same_encoder(few: Path, tmp_path: Path) -> None:
    settings = small(
        phases=[{"epochs": 3, "sides": [16, 24]}], augmentation={}, supervised="hashnet",
        bits={"mid": 16, "fine": 16}, optimisation={"batch": 8, "rate": 0.05},
    )  # fmt: skip
    whole = train(few, tmp_path / "whole.safetensors", settings, device="cpu")

    class Killed(Exception):
        pass

    def kill(report: trainer_module.StepReport) -> None:
        if report.epoch == 2 and report.done == 16:  # of 24
            raise Killed

    out = tmp_path / "halves.safetensors"
    with pytest.raises(TrainingError, match=r"no checkpoint .*halves.checkpoint.safetensors to go on from"):
        train(few, out, settings, resume=True, device="cpu")
    with pytest.raises(Killed):
        train(few, out, settings, device="cpu", on_step=kill)
    with pytest.raises(TrainingError, match=r"unfinished training, 1 of 3 epochs: go on with --resume"):
        train(few, out, settings, device="cpu")
    told: list[Mapping[str, float]] = []
    resumed = train(few, out, settings, resume=True, device="cpu", on_epoch=told.append)
    assert [record["epoch"] for record in told] == [2, 3], "at most the broken epoch is done again"
    assert resumed.fingerprint == whole.fingerprint
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="made with another configuration"):
        train(few, out, settings.changed({"seed": 5}), resume=True, device="cpu")
    next((few / "disc").iterdir()).unlink()
    with pytest.raises(TrainingError, match="made with another images"):
        train(few, out, settings, resume=True, device="cpu")


@pytest.mark.parametrize("loss", ["csq", "orthohash"])
def test_a_recipe_is_trained_resumed_and_written_as_the_network_has_it(few: Path, tmp_path: Path, loss: str) -> None:
    """Adam's state is in the checkpoint; a linear hash layer, or one with batch norm, becomes the file's head."""
    given = {"optimisation": {"batch": 8}, "phases": [{"epochs": 2, "sides": [16]}]}
    settings = small(recipe="paper", supervised=loss, bits={"mid": 16}, **given)
    out = tmp_path / "halves.safetensors"
    whole = train(few, tmp_path / "whole.safetensors", settings, device="cpu")
    train(few, out, settings, device="cpu", stop_after=1)
    assert train(few, out, settings, device="cpu", resume=True).fingerprint == whole.fingerprint
    assert set(whole.history[0]) == {"epoch", "mid", "map_mid", "held_out", "seconds"}, "the paper's loss alone"

    tensors, course = load_checkpoint(out.with_name("halves.checkpoint.safetensors"))
    assert course.setup["configuration"]["optimisation"]["optimizer"] == "adam"
    assert tensors["optimizer.0.step"] == 6, "two epochs of three batches"
    start = "best.heads.mid."
    state = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    width = state["linear.weight"].shape[1]
    layer = HashLayer(width, 16, settings.with_recipe().hash_layer)
    layer.load_state_dict(state)
    features = torch.nn.functional.normalize(torch.randn(50, width, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = np.packbits((layer.eval()(features) > 0).numpy(), axis=1)
    found = load_encoder(out).codes({"mid": features.numpy()})["mid"]
    assert np.unpackbits(found ^ expected).mean() < 0.005, "but for the rounding to half precision"


def test_early_stop_looks_at_the_held_out_part(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.5, 0.7, 0.6, 0.69, 0.9])
    monkeypatch.setattr(trainer_module, "held_out_metrics", lambda *_: {"held_out": next(figures)})
    settings = small(patience=2, phases=[{"epochs": 5, "sides": [16]}])
    report = train(few, tmp_path / "e.safetensors", settings, device="cpu")
    assert (report.epochs, report.best_epoch) == (4, 2)


def test_of_epochs_that_are_as_good_the_last_is_kept(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "held_out_metrics", lambda *_: {"held_out": 0.0})
    settings = small(patience=1, phases=[{"epochs": 3, "sides": [16]}])
    report = train(few, tmp_path / "e.safetensors", settings, device="cpu")
    assert (report.epochs, report.best_epoch) == (3, 3)


def test_a_batch_that_does_not_fit_is_divided(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = HashingNetwork.forward

    def narrow(self: Any, x: torch.Tensor) -> Any:
        if self.training:
            sizes.append(len(x))
            if len(x) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(HashingNetwork, "forward", narrow)
    train(few, tmp_path / "e.safetensors", small(phases=[{"epochs": 1, "sides": [16]}]), device="cpu")
    assert sizes[:3] == [16, 8, 4]
    assert set(sizes[3:]) == {4}
    monkeypatch.setattr(HashingNetwork, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(TrainingError, match="even two images at a time"):
        train(few, tmp_path / "f.safetensors", small(), device="cpu")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"supervised": "magic"}, "supervised: Input should be 'orthohash'"),
        ({"learning": 3}, "learning: Extra inputs"),
        ({"bits": {"huge": 8}}, "'huge' is no granularity"),
        ({"weights": {"mid": 0}}, "nothing to learn"),
        ({"augmentation": {"area": [0.9, 0.2]}}, "expected the smaller share first"),
        ({"bits": {"mid": 16, "fine": 16}, "augmentation": {"mixup": 0.5}}, "mixup blends images"),
    ],
)
def test_configurations_that_are_wrong(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        small(**settings)


def test_images_that_cannot_be_trained_on(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    make_photos(few, 20)
    for kind in ("stripes", "blocks"):
        shutil.rmtree(few / kind)
    with pytest.raises(LabelError, match=r"all images of .* have the label 'disc'"):
        train(few, out, small(), device="cpu")
    for file in sorted((few / "disc").iterdir())[3:]:
        file.unlink()
    with pytest.raises(TrainingError, match="3 readable images, expected at least 20"):
        train(few, out, small(), device="cpu")
    assert not out.exists()
    with pytest.raises(TrainingError, match=r"the folder .*nowhere for the encoder file does not exist"):
        train(few, tmp_path / "nowhere" / "e.safetensors", small(), device="cpu")


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "e.safetensors"
    settings = small(phases=[{"epochs": 1, "sides": [16]}])
    train(few, out, settings, device="cpu")
    before = {file.name: file.read_bytes() for file in tmp_path.glob("e.*")}
    monkeypatch.setattr(
        "mg_milvus.training.checkpoint.write_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(TrainingError, match=r"e.safetensors \(.* MB\) cannot be written: No space left"):
        train(few, out, settings, device="cpu")
    assert {file.name: file.read_bytes() for file in tmp_path.glob("e.*")} == before


# Through the command


CONFIG = """
backbone: smallnet
init: scratch
bits: {mid: 16}
side: 32
phases: [{epochs: 4, sides: [16]}]
optimisation: {batch: 16, rate: 0.05}
held_out: 0.2
"""


def test_the_command_survives_sigkill(few: Path, tmp_path: Path) -> None:
    photos = few
    (photos / "disc" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "t.yaml").write_text(CONFIG)
    whole = mgm("train", photos, "--out", tmp_path / "whole.safetensors", "--config", tmp_path / "t.yaml", "--json",
                cwd=tmp_path)  # fmt: skip
    assert whole.returncode == 3, whole.stderr
    record = json.loads(whole.stdout)
    assert record["failures"][0]["path"].endswith("broken.jpg")
    assert record["epochs"] == 4
    arguments = ["train", photos, "--out", tmp_path / "e.safetensors", "--config", tmp_path / "t.yaml", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mg_milvus", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    checkpoint = tmp_path / "e.checkpoint.safetensors"
    wait_until(lambda: checkpoint.exists() or process.poll() is not None, "a checkpoint is written")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert checkpoint.exists()
    resumed = mgm(*arguments, "--resume", cwd=tmp_path)
    assert resumed.returncode == 3, resumed.stderr
    assert json.loads(resumed.stdout)["fingerprint"] == record["fingerprint"]
    assert (tmp_path / "e.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_the_trained_encoder_serves_an_index(few: Path, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(CONFIG)
    out = tmp_path / "mine.safetensors"
    trained = mgm(
        "train", few, "--out", out, "--config", tmp_path / "t.yaml", "--epochs", "1",
        "--loss", "csq", "--recipe", "paper", "--tensorboard", tmp_path / "curves", "--report", tmp_path / "report",
        cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "epoch 1 of 1: loss mid" in trained.stderr
    assert "held-out mAP mid" in trained.stderr
    assert "3 classes and 3 groups" in trained.stdout
    assert list((tmp_path / "curves").iterdir())
    assert f"wrote {tmp_path / 'report' / 'index.html'}" in trained.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "How mine.safetensors was trained" in page
    assert re.search(r"recipe\W.*?paper", page, re.DOTALL)
    course = load_checkpoint(tmp_path / "mine.checkpoint.safetensors")[1]
    assert (
        course.setup["configuration"]["optimisation"] | {"batch": 16, "rate": 0.05, "optimizer": "adam"}
        == (course.setup["configuration"]["optimisation"])
    ), "the file goes before the recipe, and the recipe before the defaults"
    wrong = mgm("train", few, "--out", out, "--config", tmp_path / "none.yaml", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "cannot be read" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def test_the_configurations_of_the_benchmarks_are_valid() -> None:
    files = sorted((Path(__file__).parents[2] / "benchmarks").rglob("*.yaml"))
    assert {file.name for file in files} >= {"cifar10.yaml", "labelled.yaml"}
    assert all(TrainingConfiguration.load(file).epochs for file in files)


def test_networks_of_torchvision_can_be_trained(few: Path, tmp_path: Path) -> None:
    settings = small(backbone="resnet18", bits={"mid": 16, "fine": 16}, phases=[{"epochs": 1, "sides": [32]}])
    train(few, tmp_path / "e.safetensors", settings, device="cpu")
    encoder = load_encoder(tmp_path / "e.safetensors")
    assert encoder.backbone == "resnet18"
    assert dict(encoder.bits) == {"mid": 16, "fine": 16}
