"""Recipes: what papers and their authors' code say, and how it meets what is given."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

from mg_milvus.cli.train import Loss, Recipe
from mg_milvus.errors import TrainingError
from mg_milvus.training.config import PAPERS, HashLayerKind, Method, Optimisation, TrainingConfiguration
from mg_milvus.training.losses import SUPERVISED
from mg_milvus.training.network import HashLayer, half_spaces
from mg_milvus.training.trainer import optimizer_of, rate_at


def paper(loss: str, **settings: Any) -> TrainingConfiguration:
    return TrainingConfiguration.of({"recipe": "paper", "supervised": loss, **settings}).with_recipe()


def optimizer(settings: Optimisation) -> torch.optim.Optimizer:
    """Of a network of one layer and a hash layer, each a weight and an offset."""
    backbone, head = torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)
    return optimizer_of(list(backbone.parameters()), list(head.parameters()), settings)


def test_all_losses_have_a_paper_and_a_name() -> None:
    assert set(get_args(Method)) == set(PAPERS) == set(SUPERVISED) == {member.value for member in Loss}
    assert {member.value for member in Recipe} == set(get_args(TrainingConfiguration.model_fields["recipe"].annotation))


# Rates of the backbone and of the hash layer, and by how much they have fallen at half and at 0.85 of the training, as
# the sources have them: a solver that multiplies by 0.6 after every 20,000 of 150,000 iterations has done so 3 times at
# 75,000 and 6 times at 127,500; one that halves every 2,000 of 10,000 2 and 4 times; 0.1 after 30 of 50 epochs; 0.7
# every 10 of 90 epochs 4 and 7 times; 0.1 after 80 of 100 epochs.
@pytest.mark.parametrize(
    ("loss", "kind", "batch", "rates", "fallen"),
    [
        ("dsh", torch.optim.SGD, 200, (1e-3, 1e-3), (0.216, 0.046656)),
        ("hashnet", torch.optim.SGD, 256, (3e-4, 3e-3), (0.25, 0.0625)),
        ("greedyhash", torch.optim.SGD, 32, (1e-3, 1e-3), (1.0, 0.1)),
        ("csq", torch.optim.Adam, 64, (1e-5, 1e-3), (0.2401, 0.0823543)),
        ("orthohash", torch.optim.Adam, 256, (1e-5, 1e-4), (1.0, 0.1)),
    ],
)
def test_rates_are_those_of_the_papers(
    loss: str, kind: type, batch: int, rates: tuple[float, float], fallen: tuple[float, float]
) -> None:
    settings = paper(loss).optimisation
    made = optimizer(settings)
    assert type(made) is kind
    assert settings.batch == batch
    first = rate_at(0.0, settings)
    assert [group["share"] * first for group in made.param_groups] == pytest.approx([rates[0]] * 2 + [rates[1]] * 2)
    assert [rate_at(progress, settings) / first for progress in (0.5, 0.85)] == pytest.approx(fallen)


@pytest.mark.parametrize(
    ("loss", "decay", "momentum"),
    [
        ("dsh", 4e-3, {"momentum": 0.9, "nesterov": False}),
        ("hashnet", 5e-4, {"momentum": 0.9, "nesterov": True}),
        ("greedyhash", 5e-4, {"momentum": 0.9, "nesterov": False}),
        ("csq", 0.0, {"betas": (0.9, 0.999)}),
        ("orthohash", 5e-4, {"betas": (0.9, 0.999)}),
    ],
)
def test_decay_and_momentum_are_those_of_the_papers(loss: str, decay: float, momentum: dict[str, Any]) -> None:
    for group in optimizer(paper(loss).optimisation).param_groups:
        weights = all(parameter.ndim > 1 for parameter in group["params"])
        assert group["weight_decay"] == (decay if weights else 0)
        assert {name: group[name] for name in momentum} == momentum


@pytest.mark.parametrize("loss", PAPERS)
def test_a_paper_has_its_loss_alone(loss: str) -> None:
    """Quantisation is a term of the losses themselves there; bits are balanced by OrthoHash's batch norm only."""
    settings = paper(loss)
    assert settings.weights.quantisation == settings.weights.balance == 0
    assert settings.optimisation.clip is None
    assert settings.optimisation.average == settings.optimisation.warm_up == 0
    assert settings.hash_layer == ("batch_norm" if loss == "orthohash" else "linear")
    assert settings.trained == {"coarse": 64, "mid": 128}


def test_what_is_given_stands_above_the_recipe() -> None:
    given = {
        "bits": {"mid": 48},
        "weights": {"balance": 0.3},
        "optimisation": {"rate": 0.02},
        "hash_layer": "batch_norm",
    }
    settings = paper("csq", **given)
    assert settings.bits == {"mid": 48}
    assert (settings.weights.balance, settings.weights.quantisation) == (0.3, 0)
    assert (settings.optimisation.rate, settings.optimisation.optimizer) == (0.02, "adam")
    assert settings.hash_layer == "batch_norm"
    assert settings.with_recipe() == settings
    # The same value as the default is given, too.
    assert paper("csq", optimisation={"rate": 0.1}).optimisation.rate == 0.1


def test_another_loss_brings_its_own_recipe() -> None:
    first = TrainingConfiguration.of({"recipe": "paper", "supervised": "dsh", "optimisation": {"batch": 12}})
    other = first.changed({"supervised": "csq"}, rate=0.5).with_recipe().optimisation
    assert (other.optimizer, other.batch, other.rate, other.backbone_rate) == ("adam", 12, 0.5, 0.01)
    assert first.changed({"recipe": "ours"}).with_recipe() == TrainingConfiguration.of(
        {"supervised": "dsh", "optimisation": {"batch": 12}}
    )


def test_our_recipe_is_the_defaults() -> None:
    settings = TrainingConfiguration()
    assert settings.with_recipe() is settings
    assert settings.hash_layer == "standardised"
    assert isinstance(optimizer(settings.optimisation), torch.optim.SGD)


def test_a_recipe_that_does_not_go_with_the_settings_is_refused() -> None:
    only_fine = {"heads": "adaptive", "weights": {"coarse": 0, "mid": 0}}
    assert TrainingConfiguration.of(only_fine).trained == {"fine": 256}
    with pytest.raises(TrainingError, match=r"the recipe of the paper of csq: .*nothing to learn"):
        paper("csq", **only_fine)
    with pytest.raises(TrainingError, match=r"recipe: Input should be 'ours' or 'paper'"):
        TrainingConfiguration.of({"recipe": "papers"})


def test_steps_fall_at_whole_multiples() -> None:
    """0.6 / 0.2 is 2.9999999999999996 in floating point, and three steps all the same."""
    settings = Optimisation.model_validate({"rate": 1.0, "warm_up": 0, "steps": {"factor": 0.5, "every": 0.2}})
    found = [rate_at(progress, settings) for progress in (0.0, 0.1999, 0.2, 0.4, 0.6, 0.8, 0.9999)]
    assert found == [1, 1, 0.5, 0.25, 0.125, 0.0625, 0.0625]


def test_without_momentum_there_is_nothing_to_look_ahead() -> None:
    assert [group["nesterov"] for group in optimizer(Optimisation(momentum=0)).param_groups] == [False] * 4
    assert [group["nesterov"] for group in optimizer(Optimisation()).param_groups] == [True] * 4


@pytest.mark.parametrize("kind", get_args(HashLayerKind))
def test_half_spaces_are_what_a_hash_layer_computes(kind: HashLayerKind) -> None:
    torch.manual_seed(3)
    layer = HashLayer(20, 8, kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()  # scales of either sign, and offsets
    layer.train()
    for _ in range(30):
        layer(torch.nn.functional.normalize(torch.randn(60, 20) + 0.4, dim=1))
    x = torch.nn.functional.normalize(torch.randn(400, 20) + 0.4, dim=1)
    expected = (layer.eval()(x) > 0).numpy()
    projection, threshold = half_spaces({f"heads.mid.{k}": v for k, v in layer.state_dict().items()}, "mid")
    assert (x.double().numpy() @ projection.T > threshold).mean() == pytest.approx(expected.mean(), abs=0.002)
    assert ((x.double().numpy() @ projection.T > threshold) == expected).mean() > 0.999
    assert 0.1 < expected.mean() < 0.9


def test_layers_of_papers_read_features_whose_squares_have_mean_one() -> None:
    x = torch.nn.functional.normalize(torch.randn(5, 400), dim=1)
    for kind, size in (("standardised", 1 / 400), ("linear", 1.0), ("batch_norm", 1.0)):
        layer = HashLayer(400, 8, kind)
        seen: list[torch.Tensor] = []
        layer.linear.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        layer(x)
        assert seen[0].square().mean().item() == pytest.approx(size, rel=1e-5)


def test_parameters_of_the_hash_layers() -> None:
    """OrthoHash's code: a map without offset, batch norm with scale and offset; the others: a map with offset."""
    shapes = {
        kind: sorted(tuple(p.shape) for p in HashLayer(6, 4, kind).parameters()) for kind in get_args(HashLayerKind)
    }
    assert shapes == {"standardised": [(4, 6)], "batch_norm": [(4,), (4,), (4, 6)], "linear": [(4,), (4, 6)]}
    layer = HashLayer(6, 4, "batch_norm").eval()
    with torch.no_grad():
        layer.norm.running_mean.copy_(torch.tensor([1.0, 2, 3, 4]))
        layer.norm.weight.copy_(torch.tensor([2.0, 2, 2, 2]))
        layer.norm.bias.copy_(torch.tensor([1.0, 1, 1, 1]))
    zero = (2 * -np.array([1.0, 2, 3, 4]) / np.sqrt(1 + 1e-5) + 1).astype(np.float32)
    np.testing.assert_allclose(layer(torch.zeros(1, 6)).detach().numpy()[0], zero, rtol=1e-6)
