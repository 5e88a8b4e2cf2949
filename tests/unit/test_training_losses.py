"""Losses of deep hashing against their formulas, written out in numpy pair by pair, and against hand-worked values."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from mg_milvus.training.losses import (
    CSQ,
    DSH,
    SUPERVISED,
    BitBalance,
    GreedyHash,
    HashLoss,
    HashNet,
    NTXent,
    OrthoHash,
    Quantisation,
    hash_centres,
)

CLASSES, BITS = 4, 8
SINGLE = np.eye(CLASSES)[[0, 1, 2, 3, 0, 1, 2]]
MULTI = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]])
LABELS = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single", "multi"])
NAMES = pytest.mark.parametrize("name", SUPERVISED)


def codes(n: int = 7, bits: int = BITS, seed: int = 0, scale: float = 1.5) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(0, scale, (n, bits)))


def free(n: int = 7, seed: int = 0) -> torch.Tensor:
    """The same, to be differentiated."""
    return codes(n, seed=seed).requires_grad_()


def value(loss: torch.Tensor) -> float:
    return float(loss.detach())


def made(name: str, classes: int = CLASSES, bits: int = BITS) -> HashLoss:
    torch.manual_seed(0)
    return SUPERVISED[name](classes=classes, bits=bits)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    """Of one image; the target sums to 1."""
    shares = np.exp(logits) / np.exp(logits).sum()
    return float(-(target * np.log(shares)).sum())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def orthohash(u: np.ndarray, labels: np.ndarray) -> float:
    centres = hash_centres(CLASSES, BITS, 0).astype(float)
    logits = [
        [8 * (cosine(row, c) - 0.2 * y) for c, y in zip(centres, ys, strict=True)]
        for row, ys in zip(u, labels, strict=True)
    ]
    return mean([cross_entropy(np.array(z), ys / ys.sum()) for z, ys in zip(logits, labels, strict=True)])


def csq(u: np.ndarray, labels: np.ndarray, tie_break: np.ndarray) -> float:
    centres = hash_centres(CLASSES, BITS, 0).astype(int)
    terms = []
    for row, ys in zip(u, labels, strict=True):
        votes = centres[ys > 0].sum(axis=0)
        target = np.where(votes > 0, 1, np.where(votes < 0, -1, tie_break))
        h = np.tanh(row)
        one = (h + 1) / 2
        bce = np.where(target == 1, -np.log(one), -np.log(1 - one))
        terms.append(bce.mean() + 0.05 * ((np.abs(h) - 1) ** 2).mean())
    return mean(terms)


def dsh(u: np.ndarray, labels: np.ndarray) -> float:
    terms = []
    for i, j in product(range(len(u)), repeat=2):
        if i < j:
            d = ((u[i] - u[j]) ** 2).sum()
            pair = d / 2 if (labels[i] * labels[j]).any() else max(2 * BITS - d, 0) / 2
            terms.append(pair + 0.01 * (np.abs(np.abs(u[i]) - 1).sum() + np.abs(np.abs(u[j]) - 1).sum()))
    return mean(terms)


def hashnet(u: np.ndarray, labels: np.ndarray, beta: float) -> float:
    h = np.tanh(beta * u)
    pairs = [(i, j) for i, j in product(range(len(u)), repeat=2) if i < j]
    similar = {pair: bool((labels[pair[0]] * labels[pair[1]]).any()) for pair in pairs}
    total = 0.0
    for i, j in pairs:
        z = 10 / BITS * float(h[i] @ h[j])
        both = set(np.flatnonzero(labels[i])) & set(np.flatnonzero(labels[j]))
        either = set(np.flatnonzero(labels[i])) | set(np.flatnonzero(labels[j]))
        c = len(both) / len(either) if both else 1
        weight = c * len(pairs) / sum(s == similar[i, j] for s in similar.values())
        total += weight * (math.log(1 + math.exp(z)) - similar[i, j] * z)
    return total / len(pairs)


def greedyhash(u: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    logits = np.where(u > 0, 1, -1) @ weights.T
    entropy = mean([cross_entropy(z, ys / ys.sum()) for z, ys in zip(logits, labels, strict=True)])
    return entropy + 0.1 * float((np.abs(np.abs(u) - 1) ** 3).mean())


@LABELS
@NAMES
def test_supervised_losses_are_their_formulas(name: str, labels: np.ndarray) -> None:
    loss = made(name).double()
    loss.step(0.06)
    u = codes()
    numbers = u.detach().numpy()
    expected = {
        "orthohash": lambda: orthohash(numbers, labels),
        "csq": lambda: csq(numbers, labels, loss.get_buffer("tie_break").numpy()),
        "dsh": lambda: dsh(numbers, labels),
        "hashnet": lambda: hashnet(numbers, labels, 2.0),  # sqrt(1 + 50 * 0.06)
        "greedyhash": lambda: greedyhash(numbers, labels, loss.get_parameter("classifier.weight").detach().numpy()),
    }[name]()
    assert value(loss(u, torch.from_numpy(labels))) == pytest.approx(expected, rel=1e-9)


# By hand, from the equations of the papers: codes of two bits, of one to three images.


def test_orthohash_by_hand() -> None:
    """The margin is taken off the cosine, not off the angle: 8 (0.8 - 0.2) meets 8 * 0.6, and each has one half."""
    loss = OrthoHash(2, 2).double()
    loss.centres = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    u = torch.tensor([[7.0, 1.0]]).double()  # cosines 8 / (sqrt 50 * sqrt 2) and 6 / 10
    assert value(loss(u, torch.eye(2)[:1])) == pytest.approx(math.log(2), rel=1e-12)
    assert value(loss(0.01 * u, torch.eye(2)[:1])) == pytest.approx(math.log(2), rel=1e-12), "lengths mean nothing"
    # Of the other class: 8 (0.6 - 0.2) = 3.2 against 6.4.
    assert value(loss(u, torch.eye(2)[1:])) == pytest.approx(math.log(1 + math.exp(3.2)), rel=1e-12)


@pytest.mark.parametrize(("progress", "beta"), [(0.0, 1.0), (0.06, 2.0)])
def test_hashnet_by_hand(progress: float, beta: float) -> None:
    """Weights |S| / |S1| = 3 and |S| / |S0| = 3 / 2, over three pairs; z is 0, -1/2 and 0 with alpha 1."""
    loss = HashNet(2, 2, alpha=1.0)
    loss.step(progress)
    h = torch.tensor([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5]]).double()
    expected = (3 * math.log(2) + 1.5 * math.log(1 + math.exp(-0.5)) + 1.5 * math.log(2)) / 3
    assert value(loss(h.atanh() / beta, torch.eye(2)[[0, 0, 1]])) == pytest.approx(expected, rel=1e-12)


def test_hashnet_weighs_a_pair_by_its_shared_labels() -> None:
    """One of two labels is shared: a half of log(1 + e^-z), with z = 0.5 alpha, alpha = 10 / bits."""
    h = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).double()
    labels = torch.tensor([[1, 0, 0], [1, 1, 0]])
    assert value(HashNet(3, 2)(h.atanh(), labels)) == pytest.approx(0.5 * math.log(1 + math.exp(-2.5)), rel=1e-12)


def test_csq_by_hand() -> None:
    """(h + 1) / 2 is 3/4 on both bits, right for the first and wrong for the second; |h| - 1 is -1/2."""
    loss = CSQ(2, 2).double()
    loss.centres = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    u = torch.tensor([[0.5, 0.5]]).double().atanh()
    expected = -(math.log(0.75) + math.log(0.25)) / 2 + 0.05 * 0.25
    assert value(loss(u, torch.eye(2)[:1])) == pytest.approx(expected, rel=1e-12)


def test_dsh_by_hand() -> None:
    """Squared distances 1 (similar), 4 (at the margin of 2 bits) and 1; ||u| - 1| sums to 0.5, 1.5 and 0.5."""
    u = torch.tensor([[1.0, 0.5], [0.0, 0.5], [-1.0, 0.5]]).double()
    pairs = (1 / 2 + 0 + (4 - 1) / 2) / 3
    regulariser = 0.01 * ((0.5 + 1.5) + (0.5 + 0.5) + (1.5 + 0.5)) / 3
    assert value(DSH(2, 2)(u, torch.eye(2)[[0, 0, 1]])) == pytest.approx(pairs + regulariser, rel=1e-12)


def test_greedyhash_by_hand() -> None:
    """Signs (1, -1) are the logits; distances to them are 1/2 and 1, and their cubes' slopes 3/4 and 3."""
    loss = GreedyHash(2, 2).double()
    loss.classifier.weight.data = torch.eye(2).double()
    u = torch.tensor([[0.5, -2.0]]).double().requires_grad_()
    found = loss(u, torch.eye(2)[:1])
    found.backward()
    assert value(found) == pytest.approx(math.log(1 + math.exp(-2)) + 0.1 * (1 / 8 + 1) / 2, rel=1e-12)
    wrong = 1 / (1 + math.exp(2))  # the share of the other class
    assert u.grad is not None
    expected = [-wrong - 0.1 * (3 / 4) / 2, wrong - 0.1 * 3 / 2]
    assert u.grad[0].tolist() == pytest.approx(expected, rel=1e-12)


@LABELS
@NAMES
def test_bool_labels_are_float_labels(name: str, labels: np.ndarray) -> None:
    loss, u = made(name), codes()
    assert value(loss(u, torch.from_numpy(labels > 0))) == value(loss(u, torch.from_numpy(labels)))


@LABELS
@pytest.mark.parametrize("name", [name for name in SUPERVISED if name != "greedyhash"])
def test_gradients(name: str, labels: np.ndarray) -> None:
    loss = made(name).double()
    assert gradcheck(lambda u: loss(u, torch.from_numpy(labels)), free())


def test_gradients_of_the_others() -> None:
    assert gradcheck(NTXent(0.3), (free(5), free(5, seed=1)))
    for regulariser in (Quantisation(), BitBalance()):
        assert gradcheck(regulariser, free())


@LABELS
@NAMES
def test_the_order_of_images_means_nothing(name: str, labels: np.ndarray) -> None:
    loss, u, y = made(name), codes(), torch.from_numpy(labels)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    assert value(loss(u[order], y[order])) == pytest.approx(value(loss(u, y)), rel=1e-9)


def nearly_perfect(loss: HashLoss, words: torch.Tensor, labels: torch.Tensor) -> tuple[float, list[float]]:
    """The loss of the words, and of the same with any one bit of any one word flipped."""
    best = value(loss(words, labels))
    worse = []
    for place in product(range(len(words)), range(words.shape[1])):
        flipped = words.clone()
        flipped[place] *= -1
        worse.append(value(loss(flipped, labels)))
    return best, worse


@pytest.mark.parametrize("name", [name for name in SUPERVISED if name != "hashnet"])
def test_any_wrong_bit_costs(name: str) -> None:
    """Three images of each of four classes on orthogonal words of 8 bits: every flip of a bit raises the loss."""
    words = torch.from_numpy(hash_centres(CLASSES, BITS)).double()
    labels = torch.eye(CLASSES).repeat(3, 1)
    loss = made(name).double()
    if isinstance(loss, GreedyHash):
        loss.classifier.weight.data = words.clone()
    best, worse = nearly_perfect(loss, words.repeat(3, 1), labels)
    expected = {
        # cosine 1 with its own target less the margin, 0 with the others
        "orthohash": math.log(1 + 3 * math.exp(-8 * 0.8)),
        # -log((1 + tanh 1) / 2) + 0.05 (1 - tanh 1)^2
        "csq": -math.log((1 + math.tanh(1)) / 2) + 0.05 * (1 - math.tanh(1)) ** 2,
        # d = 0 within a class, d = 4 bits / 2 = margin between classes, all values of size 1
        "dsh": 0.0,
        # logits 8 and 0
        "greedyhash": math.log(1 + 3 * math.exp(-8)),
    }[name]
    assert best == pytest.approx(expected, abs=1e-9)
    assert min(worse) > best + 1e-6


def test_any_wrong_bit_costs_hashnet() -> None:
    """Two classes of opposite words: z is 10 within a class and -10 between. (It likes orthogonal words less.)"""
    word = torch.from_numpy(hash_centres(1, BITS)).double() * 3
    loss = HashNet(2, BITS)
    loss.step(1.0)
    best, worse = nearly_perfect(loss, torch.cat([word, -word]).repeat(3, 1), torch.eye(2).repeat(3, 1))
    assert best == pytest.approx(2 * math.log(1 + math.exp(-10)), rel=1e-6)
    assert min(worse) > best * 1.5
    orthogonal = 3 * torch.from_numpy(hash_centres(2, BITS)).double().repeat(3, 1)
    expected = math.log(1 + math.exp(-10)) + math.log(2)
    assert value(loss(orthogonal, torch.eye(2).repeat(3, 1))) == pytest.approx(expected, rel=1e-6)


@NAMES
def test_free_codes_of_three_classes_come_apart(name: str) -> None:
    torch.manual_seed(1)
    u = torch.nn.Parameter(0.1 * torch.randn(24, 16))
    ids = torch.arange(24) % 3
    labels = F.one_hot(ids, 3)
    loss = made(name, classes=3, bits=16)
    optimiser = torch.optim.Adam([u, *loss.parameters()], lr=0.05)
    first = value(loss(u, labels))
    for step in range(200):
        loss.step(step / 200)
        optimiser.zero_grad()
        loss(u, labels).backward()
        optimiser.step()
    bits = (u > 0).detach().numpy()
    distances = (bits[:, None] != bits[None]).sum(axis=2)
    same = (ids[:, None] == ids[None]).numpy()
    # Of three orthogonal words of 16 bits four bits are the same for all, and the losses do not care about those.
    assert distances[same].max() < distances[~same].min()
    assert distances[~same].min() >= 6
    loss.step(0.0)
    assert value(loss(u, labels)) < first


@NAMES
def test_codes_of_several_labels_lie_between(name: str) -> None:
    """Images of classes 0 and 1, of both, and of 2: those of both end up nearer to 0 and to 1 than 2 does."""
    torch.manual_seed(2)
    u = torch.nn.Parameter(0.1 * torch.randn(32, 16))
    labels = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]).repeat(8, 1)
    loss = made(name, classes=3, bits=16)
    optimiser = torch.optim.Adam([u, *loss.parameters()], lr=0.05)
    for step in range(200):
        loss.step(step / 200)
        optimiser.zero_grad()
        loss(u, labels).backward()
        optimiser.step()
    bits = (u > 0).detach().numpy()
    distances = (bits[:, None] != bits[None]).sum(axis=2).reshape(8, 4, 8, 4).mean(axis=(0, 2))
    assert max(distances[2, 0], distances[2, 1]) < min(distances[3, :3])


@NAMES
def test_half_precision_and_autocast_change_nothing(name: str) -> None:
    loss = made(name)
    u = codes(scale=30.0).detach().bfloat16()
    labels = torch.from_numpy(MULTI)
    expected = loss(u.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(u, labels)
    assert found.dtype == torch.float32
    assert value(found) == value(expected)


@NAMES
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4])
def test_gradients_stay_finite(name: str, size: float) -> None:
    loss = made(name)
    u = (size * codes().detach().sign()).float().requires_grad_()
    found = loss(u, torch.from_numpy(SINGLE))
    found.backward()
    assert found.isfinite()
    assert u.grad is not None
    assert u.grad.isfinite().all()


@NAMES
@pytest.mark.parametrize("n", [1, 2])
def test_batches_without_pairs_of_a_kind(name: str, n: int) -> None:
    """One image has no pairs, two of one class no dissimilar ones."""
    u = free(n)
    loss = made(name)(u, torch.tensor([[0, 1, 0, 0]] * n))
    loss.backward()
    assert loss.isfinite()
    assert u.grad is not None
    assert u.grad.isfinite().all()


@NAMES
def test_ids_in_place_of_multi_hot_labels_are_refused(name: str) -> None:
    loss = made(name)
    with pytest.raises(ValueError, match=r"labels \(7,\), expected \(7, 8\) and \(7, 4\)"):
        loss(codes(), torch.arange(7))
    with pytest.raises(ValueError, match=r"codes \(7, 16\)"):
        loss(codes(bits=16), torch.from_numpy(SINGLE))


@pytest.mark.parametrize(("name", "buffers"), [("orthohash", {"centres"}), ("csq", {"centres", "tie_break"})])
def test_centres_travel_in_the_state_and_are_not_learned(name: str, buffers: set[str]) -> None:
    loss = made(name)
    assert set(loss.state_dict()) == buffers
    assert list(loss.parameters()) == []


def test_only_greedyhash_has_something_to_learn() -> None:
    assert {name: [tuple(p.shape) for p in made(name).parameters()] for name in SUPERVISED} == {
        "orthohash": [],
        "csq": [],
        "dsh": [],
        "hashnet": [],
        "greedyhash": [(CLASSES, BITS)],
    }


def test_orthohash_asks_for_a_margin() -> None:
    words = torch.from_numpy(hash_centres(2, 8)).double()
    loss = OrthoHash(2, 8, scale=3.0, margin=0.5)
    assert value(loss(7 * words, torch.eye(2))) == pytest.approx(math.log(1 + math.exp(-3 * (1 - 0.5))))


def test_orthohash_shares_the_target_among_labels() -> None:
    """At the sum of two orthogonal targets both cosines are 1 / sqrt 2, and the third is 0."""
    words = torch.from_numpy(hash_centres(3, 8)).double()
    both = (words[0] + words[1])[None]
    right = 8 * (1 / math.sqrt(2) - 0.2)
    expected = math.log(2 * math.exp(right) + 1) - right
    assert value(OrthoHash(3, 8)(both, torch.tensor([[1, 1, 0]]))) == pytest.approx(expected)


def test_csq_votes_for_the_centre_of_several_labels() -> None:
    loss = CSQ(3, 4)
    loss.centres = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1]])
    loss.tie_break = torch.tensor([-1.0, 1, -1, 1])
    labels = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1], [0.3, 0.7, 0]])
    expected = [[1, 1, 1, 1], [1, 1, -1, 1], [1, 1, -1, -1], [1, 1, 1, -1], [1, 1, -1, -1]]
    assert loss.targets(labels).tolist() == expected


def test_the_word_that_breaks_ties_is_the_seeds() -> None:
    word = CSQ(4, 64, seed=5).tie_break
    assert set(word.tolist()) == {-1.0, 1.0}
    assert (CSQ(4, 64, seed=5).tie_break == word).all()
    assert (CSQ(4, 64, seed=6).tie_break != word).any()


def test_hashnet_sharpens() -> None:
    loss = HashNet(CLASSES, BITS)
    betas = []
    for progress in (0.0, 0.3, 0.7, 1.0):
        loss.step(progress)
        betas.append(loss.beta)
    assert betas == pytest.approx([1, 4, 6, math.sqrt(51)])
    u = codes()
    sharp = loss(u, torch.from_numpy(SINGLE))
    loss.step(0.0)
    assert value(sharp) == pytest.approx(value(loss(math.sqrt(51) * u, torch.from_numpy(SINGLE))))


@pytest.mark.parametrize("name", [name for name in SUPERVISED if name != "hashnet"])
def test_the_others_do_not_change_with_progress(name: str) -> None:
    loss, u = made(name), codes()
    before = value(loss(u, torch.from_numpy(SINGLE)))
    loss.step(0.9)
    assert value(loss(u, torch.from_numpy(SINGLE))) == before


def test_hashnet_weighs_rare_pairs_up() -> None:
    """With all codes 0 every pair costs log 2; both kinds count the same, however many there are."""
    labels = F.one_hot(torch.tensor([0, 0, 1, 2, 3]), CLASSES)
    assert value(HashNet(CLASSES, BITS)(torch.zeros(5, BITS), labels)) == pytest.approx(2 * math.log(2))


def test_dsh_leaves_distant_pairs_alone() -> None:
    """Codes of opposite signs have d = 4 bits, twice the margin: only the regulariser pulls."""
    u = torch.tensor([[2.0] * BITS, [-2.0] * BITS], requires_grad=True)
    loss = DSH(2, BITS)(u, torch.eye(2))
    loss.backward()
    assert value(loss) == pytest.approx(0.01 * (BITS + BITS))
    assert u.grad is not None
    assert u.grad.tolist() == [pytest.approx([0.01] * BITS), pytest.approx([-0.01] * BITS)]


def test_greedyhash_passes_the_gradient_of_the_signs_to_the_codes() -> None:
    """d/du = (softmax - target) @ weights / n, as if sign were the identity, plus the derivative of the penalty."""
    loss = made("greedyhash").double()
    assert isinstance(loss, GreedyHash)
    u = free()
    loss(u, torch.from_numpy(SINGLE)).backward()
    numbers, weights = u.detach().numpy(), loss.classifier.weight.detach().numpy()
    logits = np.where(numbers > 0, 1, -1) @ weights.T
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    through = (shares - SINGLE) @ weights / len(numbers)
    size = np.abs(numbers)
    penalty = 0.1 * 3 * (size - 1) ** 2 * np.sign(size - 1) * np.sign(numbers) / numbers.size
    assert u.grad is not None
    assert u.grad.numpy() == pytest.approx(through + penalty, rel=1e-9, abs=1e-12)
    of_weights = (shares - SINGLE).T @ np.where(numbers > 0, 1, -1) / len(numbers)
    assert loss.classifier.weight.grad is not None
    assert loss.classifier.weight.grad.numpy() == pytest.approx(of_weights, rel=1e-9, abs=1e-12)


def test_greedyhash_takes_zero_for_minus_one_as_packed_codes_do() -> None:
    loss = made("greedyhash").double()
    expected = loss(torch.full((4, BITS), -1.0).double(), torch.eye(4)) + 0.1  # 0 is at distance 1 from its sign
    assert value(loss(torch.zeros(4, BITS).double(), torch.eye(4))) == pytest.approx(value(expected), rel=1e-12)


def ntxent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    views = np.concatenate([first, second])
    terms = []
    for i in range(len(views)):
        other = (i + len(first)) % len(views)
        shares = [math.exp(cosine(views[i], views[k]) / temperature) for k in range(len(views)) if k != i]
        terms.append(-math.log(math.exp(cosine(views[i], views[other]) / temperature) / sum(shares)))
    return mean(terms)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_ntxent_is_its_formula(temperature: float) -> None:
    first, second = codes(5), codes(5, seed=1)
    expected = ntxent(first.detach().numpy(), second.detach().numpy(), temperature)
    assert value(NTXent(temperature)(first, second)) == pytest.approx(expected, rel=1e-9)


def test_ntxent_at_its_best() -> None:
    """Views alike, images at right angles: each view has e^10 for its other and e^0 for each of the 2n - 2 rest."""
    words = torch.from_numpy(hash_centres(8, 8)).float()
    assert value(NTXent(0.1)(words, 3 * words)) == pytest.approx(math.log(1 + 14 * math.exp(-10)), rel=1e-3)
    assert value(NTXent(0.1)(words, words.roll(1, 0))) == pytest.approx(10 + math.log(1 + 14 * math.exp(-10)), rel=1e-3)


def test_ntxent_does_not_depend_on_which_view_is_first_or_on_order() -> None:
    first, second = codes(6), codes(6, seed=1)
    expected = value(NTXent()(first, second))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert value(NTXent()(second, first)) == pytest.approx(expected, rel=1e-12)
    assert value(NTXent()(first[order], second[order])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ntxent_in_half_precision_and_under_autocast(dtype: torch.dtype) -> None:
    """Squares of these codes overflow float16, and e^(1 / 0.01) overflows float32."""
    first, second = (codes(6, seed=seed, scale=2000.0).detach().to(dtype).requires_grad_() for seed in (0, 1))
    expected = NTXent(0.01)(first.double(), second.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = NTXent(0.01)(first, second)
    found.backward()
    assert found.dtype == torch.float32
    assert value(found) == pytest.approx(value(expected), rel=1e-5)
    assert first.grad is not None
    assert first.grad.isfinite().all()


def test_ntxent_survives_codes_of_zero() -> None:
    first = torch.zeros(3, 8, requires_grad=True)
    loss = NTXent()(first, torch.zeros(3, 8))
    loss.backward()
    assert value(loss) == pytest.approx(math.log(5))
    assert first.grad is not None
    assert first.grad.isfinite().all()


def test_quantisation_is_what_the_signs_lose() -> None:
    u = torch.tensor([[3.0, -4.0, 0.0, 0.0], [2.0, 2.0, -2.0, 2.0]])
    # cos((3, -4, 0, 0), (1, -1, -1, -1)) = 7 / (5 * 2); the second is a multiple of its signs
    assert value(Quantisation()(u)) == pytest.approx((1 - 7 / 10) / 2)
    assert value(Quantisation()(codes())) == pytest.approx(
        mean([1 - cosine(row, np.where(row > 0, 1, -1)) for row in codes().detach().numpy()]), rel=1e-9
    )
    assert value(Quantisation()(7 * codes())) == pytest.approx(value(Quantisation()(codes())), rel=1e-9)


def test_bit_balance() -> None:
    u = torch.tensor([[1.0, 9.0, 0.5], [-1.0, 9.0, 0.5]])
    # the first bit is balanced, the second always one, the third always tanh(0.5)
    expected = (0 + math.tanh(9) ** 2 + math.tanh(0.5) ** 2) / 3
    assert value(BitBalance()(u)) == pytest.approx(expected)


@pytest.mark.parametrize("regulariser", [Quantisation(), BitBalance()])
def test_regularisers_in_half_precision_and_under_autocast(regulariser: torch.nn.Module) -> None:
    u = codes().detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = regulariser(u)
    assert found.dtype == torch.float32
    assert value(found) == value(regulariser(u.float()))


def test_regularisers_are_smallest_for_balanced_binary_codes() -> None:
    """All words of 3 bits: balanced, independent, binary."""
    u = 20.0 * torch.tensor(list(product((-1.0, 1.0), repeat=3)))
    for regulariser in (Quantisation(), BitBalance()):
        assert value(regulariser(u)) == pytest.approx(0, abs=1e-6)
        assert value(regulariser(u + torch.tensor([25.0, 25.0, 0.0]))) > 0.05
