"""Networks of timm, open_clip and transformers: built by their library, tapped with hooks, their weights checked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from mg_milvus.encoder.backbones import EXTRAS, IMAGENET_MEAN, IMAGENET_STD, LIBRARIES, Backbone, Texts
from mg_milvus.encoder.taps import OUTPUT, Value, choose_taps, described, named_taps, series_of
from mg_milvus.encoder.weights import weights_fingerprint
from mg_milvus.errors import EncoderError, MissingPackageError, QueryError, WeightsNotFoundError
from mg_milvus.schema.tags import vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray

    Tensors = Mapping[str, torch.Tensor]

_MODULES = {"timm": "timm", "open_clip": "open_clip", "hf": "transformers"}
_NAMES = {
    "timm": re.compile(r"[\w.-]+"),
    "open_clip": re.compile(r"([\w.-]+)(?:/([\w.-]+))?"),
    "hf": re.compile(r"[^\x00-\x1f]{1,190}"),
}
"""What may follow the colon. Names that begin with a place, such as ``hf-hub:``, would be fetched by mere loading."""
_TOWERS = ("vision_model", "vision_tower", "visual")
"""Modules that hold the vision tower of a network of images and texts."""
_PROJECTION = "visual_projection"
"""Module that brings the vector of a vision tower to those of texts."""
_VECTORS = ("image_embeds", "pooler_output")
"""Fields of an output of transformers that are a vector an image."""
_TEXTS = 128
"""Words whose vectors' mean centres texts."""
_STEP = 32
"""Pixels that an input of another shape is wider, to learn whether a network takes it."""
_IMAGES = 2


@dataclass(frozen=True, slots=True)
class Model:
    """A network of a library and how it wants its images.

    Attributes:
        network: images (n, 3, h, w) -> anything; its modules are tapped.
        side: of the input, in pixels.
        mean: subtracted from pixels between 0 and 1.
        std: what the differences are divided by.
        architecture: what builds the network again, besides its name; JSON.
        texts: loads the tower whose vectors are of the kind that the network gives in the end, if it has one.
    """

    network: nn.Module
    side: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    architecture: str = ""
    texts: Callable[[], TextTower | None] = lambda: None


class TextTower:
    """The part of a network of images and texts that encodes texts."""

    def __init__(
        self, name: str, whole: nn.Module, tokens: Callable[[Sequence[str]], Tensors],
        vectors: Callable[[Tensors], object],
    ) -> None:  # fmt: skip
        """Take the tower of a network.

        Args:
            name: of the network, for errors.
            whole: the network.
            tokens: texts -> tokens, of whole texts.
            vectors: tokens -> an output with a vector (d,) a text.
        """
        self._name, self._tokens, self._vectors = name, tokens, vectors
        own = whole.eval().requires_grad_(False).state_dict()
        # What open_clip and transformers call the parts for images begins so.
        self.fingerprint = weights_fingerprint({
            key: value.float().numpy() for key, value in own.items() if not key.startswith("vis")
        })  # fmt: skip

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Texts -> (n, d) vectors of length 1.

        Raises:
            QueryError: a text is longer than the tower reads.
            EncoderError: it gives no finite vectors.
        """
        with torch.inference_mode():
            found = _vector(self._vectors(self._tokens(texts)))
        if found is None or not found.isfinite().all():
            raise EncoderError(f"the text tower of {self._name} gives no vectors: take other weights")
        return cast("NDArray[np.float64]", nn.functional.normalize(found.double(), dim=1).numpy())

    def described(self) -> Texts:
        """How a file recognises the tower, and centres its vectors."""
        known = sorted(vocabulary().known.values())
        mean = self(known[:: len(known) // _TEXTS][:_TEXTS]).mean(axis=0)
        return Texts(self.fingerprint, tuple(round(value, 6) for value in mean.tolist()))


def load_library_model(
    name: str, weights: Tensors | None, taps: Sequence[str] = ()
) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """Load a network with its weights, and describe it.

    Args:
        name: as in ``LIBRARIES``.
        weights: of the network; None: the library's own, from its cache or fetched.
        taps: layers to pool, early to late; none: those that ``choose_taps`` chooses.

    Raises:
        EncoderError: no such network, or the weights do not fit it.
        MissingPackageError: the library is not installed.
        WeightsNotFoundError: there are no weights, or they cannot be fetched.
    """
    library, rest = _split(name)
    with _quiet():
        model = _LOADERS[library](name, rest, weights is None)
        network = model.network.eval()
        if weights is not None:
            _load_state(network, _renamed(weights, network), name)
        values = _values(network, model.side)
        found = named_taps(values, taps, name) if taps else choose_taps(values, model.side, name)
        row = replace(
            described(name, found, model.side), mean=model.mean, std=model.std, architecture=model.architecture
        )
        row = replace(row, multiple=_STEP if _takes_other_shapes(network, row) else 0)
        # Texts are compared with codes of the vector that the network gives in the end, averaged over its one place.
        if row.average and row.stages[-1] == OUTPUT:
            row = replace(row, texts=_described_texts(model))
    return row, {key: value.detach().clone() for key, value in network.state_dict().items()}


def library_weights(name: str) -> dict[str, torch.Tensor]:
    """The library's own weights of a network, for an encoder that is kept without them.

    Raises:
        MissingPackageError: the library is not installed.
        WeightsNotFoundError: there are no weights, or they cannot be fetched.
    """
    library, rest = _split(name)
    with _quiet():
        return dict(_LOADERS[library](name, rest, True).network.eval().state_dict())


def _described_texts(model: Model) -> Texts | None:
    """What is kept of a text tower; None without one."""
    try:
        tower = model.texts()
    except WeightsNotFoundError:  # of its tokenizer; images do without
        return None
    return None if tower is None else tower.described()


def load_text_tower(row: Backbone) -> TextTower:
    """The text tower beside a network, from its library's cache or fetched.

    Raises:
        EncoderError: there is none, or it is another one than the network's file was made with.
        MissingPackageError: the library is not installed.
        WeightsNotFoundError: its weights are not on this machine and cannot be fetched.
    """
    library, rest = _split(row.name)
    try:
        with _quiet():
            tower = _LOADERS[library](row.name, rest, True).texts()
    except WeightsNotFoundError as error:
        raise WeightsNotFoundError(
            f"words need the text tower of {row.name}, which is not on this machine and cannot be fetched: connect "
            "this machine once, or query with an image"
        ) from error
    expected = row.texts.fingerprint if row.texts else "none"
    if tower is None or tower.fingerprint != expected:
        raise EncoderError(
            f"the text tower of {row.name} on this machine has the fingerprint {tower.fingerprint if tower else 'none'}"
            f", expected {expected}: take the weights that the encoder was fitted with"
        )
    return tower


def library_extractor(row: Backbone, weights: Tensors) -> nn.Module:
    """A module (n, 3, h, w) float32 -> {stage: its output}, in evaluation mode.

    Raises:
        EncoderError: the weights are not of this network.
        MissingPackageError: the library is not installed.
    """
    library, rest = _split(row.name)
    with _quiet():
        with torch.device("meta"):  # an impossible size fails here, before it takes memory
            planned = _BUILDERS[library](row.name, rest, row.architecture)
        _check_shapes(planned, weights, row.name)
        network = _BUILDERS[library](row.name, rest, row.architecture).eval()
        _load_state(network, weights, row.name)
    return _Tapped(network.requires_grad_(False), row)


class _Projected(nn.Module):
    """A vision tower, and the projection of its vector."""

    def __init__(self, tower: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.projection(_vector(self.tower(x)))
        return found


class _Tapped(nn.Module):
    """A network whose parts hand over what they give. Threads may run it at the same time."""

    def __init__(self, network: nn.Module, row: Backbone) -> None:
        super().__init__()
        self._network, self._stages = network, row.stages
        self._kept = threading.local()
        parts = dict(network.named_modules())
        for stage in row.stages:
            if stage != OUTPUT:
                if stage not in parts:
                    raise EncoderError(f"{row.name} has no layer '{stage}': make the encoder again with mgm fit")
                parts[stage].register_forward_hook(self._keeps(stage))

    def _keeps(self, stage: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            self._kept.outputs[stage] = _tensor(output)

        return keep

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor | None] = {}
        self._kept.outputs = outputs
        last = self._network(x)
        if OUTPUT in self._stages:
            outputs[OUTPUT] = _vector(last)
        return {stage: cast("torch.Tensor", outputs[stage]) for stage in self._stages}


def _split(name: str) -> tuple[str, str]:
    library, _, rest = name.partition(":")
    if not _NAMES[library].fullmatch(rest):
        raise EncoderError(f"'{name}' names no network; expected {LIBRARIES[library]}")
    return library, rest


def _package(library: str) -> ModuleType:
    try:
        module = import_module(_MODULES[library])
    except ImportError as error:
        raise MissingPackageError(
            f"networks of {library} need {_MODULES[library]} ({error}): pip install 'mg-milvus[{EXTRAS[library]}]'"
        ) from error
    if library == "hf":
        module.utils.logging.disable_progress_bar()
    return module


def _timm(name: str, model: str, pretrained: bool) -> Model:
    timm = _package("timm")
    if not timm.is_model(model):
        raise EncoderError(f"timm has no network '{model}'; near are {_near(model, timm.list_models())}")
    with _fetching(name):
        network = timm.create_model(model, pretrained=pretrained, num_classes=0)
    data = timm.data.resolve_model_data_config(network)
    return Model(network, data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]))


def _build_timm(_name: str, model: str, _architecture: str) -> nn.Module:
    timm = _package("timm")
    if not timm.is_model(model):
        raise EncoderError(
            f"timm {timm.__version__} has no network '{model}': take the version that it was fitted with"
        )
    return cast("nn.Module", timm.create_model(model, pretrained=False, num_classes=0))


def _open_clip(name: str, rest: str, pretrained: bool) -> Model:
    open_clip = _package("open_clip")
    model, _, tag = rest.partition("/")
    _check_open_clip(open_clip, model)
    if pretrained and tag not in (tags := open_clip.list_pretrained_tags_by_model(model)):
        raise EncoderError(f"open_clip has no weights '{tag}' of {model}; it has {', '.join(tags) or 'none'}")
    with _fetching(name):
        whole = open_clip.create_model(model, pretrained=tag if pretrained else None)
    visual = whole.visual
    size = visual.image_size
    side = size[0] if isinstance(size, tuple | list) else size
    described = Model(visual, side, tuple(visual.image_mean), tuple(visual.image_std))
    if not pretrained:  # no client would find the tower of a file of the user's again
        return described
    return replace(described, texts=lambda: _open_clip_texts(open_clip, name, model, whole))


def _open_clip_texts(open_clip: ModuleType, name: str, model: str, whole: nn.Module) -> TextTower:
    with _fetching(name):
        tokenizer = open_clip.get_tokenizer(model)
    length = tokenizer.context_length

    def tokens(texts: Sequence[str]) -> Tensors:
        longer = tokenizer([*texts, ""], context_length=length + 1)  # the tokenizer itself cuts without a word
        if (longer[:, -1] != longer[-1, -1]).any():
            raise _too_long(texts, name, length)
        return {"text": tokenizer(list(texts))}

    return TextTower(name, whole, tokens, lambda found: cast("Any", whole).encode_text(**found))


def _too_long(texts: Sequence[str], name: str, length: int) -> QueryError:
    longest = max(texts, key=len)
    return QueryError(
        f"the text '{longest:.40}…' has {len(longest.split())} words, {name} reads at most {length} tokens, which are "
        "parts of words: say less"
    )


def _build_open_clip(_name: str, rest: str, _architecture: str) -> nn.Module:
    open_clip = _package("open_clip")
    model = rest.partition("/")[0]
    _check_open_clip(open_clip, model)
    device = torch.get_default_device()  # else it moves the network to the CPU
    return cast("nn.Module", open_clip.create_model(model, device=device).visual)


def _check_open_clip(open_clip: ModuleType, model: str) -> None:
    if open_clip.get_model_config(model) is None:
        raise EncoderError(f"open_clip has no network '{model}'; near are {_near(model, open_clip.list_models())}")


def _near(name: str, known: Sequence[str]) -> str:
    return ", ".join(get_close_matches(name, known, 5, 0)) or "none"


def _hf(name: str, place: str, pretrained: bool) -> Model:
    transformers = _package("hf")
    if not pretrained:
        raise EncoderError(f"{name} has its weights with it; leave --weights out, or put them into a folder hf:FOLDER")
    with _fetching(name):
        # Only safetensors: PyTorch's own files can run code. No code of the model's author either.
        whole = transformers.AutoModel.from_pretrained(place, trust_remote_code=False, use_safetensors=True)
    network = _tower(whole, name)
    try:
        wanted, _ = transformers.image_processing_utils.ImageProcessingMixin.get_image_processor_dict(place)
        mean, std = tuple(wanted["image_mean"]), tuple(wanted["image_std"])
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(
            f"{name} does not say how its pixels are scaled; expected preprocessor_config.json with image_mean and "
            "image_std: copy it from where the weights come from"
        ) from error
    side = _side_of(wanted) or getattr(network.config, "image_size", None) or 224
    described = Model(network, side, mean, std, json.dumps(whole.config.to_diff_dict(), sort_keys=True))
    if not hasattr(whole, "get_text_features") or not _same_space(network, whole, side):
        return described
    return replace(described, texts=lambda: _hf_texts(transformers, name, place, whole))


def _hf_texts(transformers: ModuleType, name: str, place: str, whole: Any) -> TextTower | None:
    """The text tower of a network of transformers; None without its tokenizer."""
    with _fetching(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if tokenizer("cat")["input_ids"] == tokenizer("dog")["input_ids"]:
        return None  # where its files are missing, it knows no words
    length = whole.config.text_config.max_position_embeddings

    def tokens(texts: Sequence[str]) -> Tensors:
        if any(len(own) > length for own in tokenizer(list(texts))["input_ids"]):
            raise _too_long(texts, name, length)
        # As SigLIP was trained; CLIP does not mind.
        return cast("Tensors", tokenizer(list(texts), padding="max_length", max_length=length, return_tensors="pt"))

    return TextTower(name, whole, tokens, lambda found: whole.get_text_features(**found))


def _same_space(network: nn.Module, whole: Any, side: int) -> bool:
    """Whether a network gives the vectors that its library compares with those of texts."""
    images = torch.rand(_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own, wanted = _vector(network.eval()(images)), _vector(whole.eval().get_image_features(images))
    return own is not None and wanted is not None and own.shape == wanted.shape and torch.allclose(own, wanted, 1e-3)


def _side_of(wanted: Mapping[str, Any]) -> int | None:
    """Pixels that an image processor of transformers makes: the crop, else the size."""
    for key in ("crop_size", "size"):
        size = wanted.get(key)
        if isinstance(size, Mapping):
            size = size.get("height") or size.get("shortest_edge")
        if isinstance(size, int):
            return size
    return None


def _build_hf(name: str, _place: str, architecture: str) -> nn.Module:
    transformers = _package("hf")
    settings = json.loads(architecture)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    return _tower(transformers.AutoModel.from_config(config, trust_remote_code=False), name)


def _tower(network: nn.Module, name: str) -> nn.Module:
    """The vision tower of a network of transformers, with what brings its vector to those of texts."""
    for tower in _TOWERS:
        if isinstance(found := getattr(network, tower, None), nn.Module):
            projection = getattr(network, _PROJECTION, None)
            return found if projection is None else _Projected(found, projection)
    if getattr(network, "main_input_name", "pixel_values") != "pixel_values":
        raise EncoderError(f"{name} is a {type(network).__name__}, which reads no images; expected a vision tower")
    return network


_LOADERS: Mapping[str, Callable[[str, str, bool], Model]] = {"timm": _timm, "open_clip": _open_clip, "hf": _hf}
_BUILDERS: Mapping[str, Callable[[str, str, str], nn.Module]] = {
    "timm": _build_timm, "open_clip": _build_open_clip, "hf": _build_hf,
}  # fmt: skip


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Turn whatever a library raises when it has no weights and cannot fetch them into one sentence."""
    try:
        yield
    except Exception as error:  # the libraries and the network raise many kinds
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        offered = "take a FOLDER with config.json and model.safetensors" if name.startswith("hf:") else "give --weights"
        reason = reason.split(". ")[0].rstrip(".")
        raise WeightsNotFoundError(
            f"the weights of {name} are not on this machine and cannot be fetched ({reason}): connect this machine "
            f"once, or {offered}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' notes on loading out of the output; what fails is raised."""
    import logging
    import warnings

    loggers = [logging.getLogger(name) for name in ("timm", "open_clip", "transformers", "huggingface_hub", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _renamed(weights: Tensors, network: nn.Module) -> Tensors:
    """The weights of the network, out of a file that may also hold a classifier or a tower of texts."""
    own = network.state_dict().keys()
    for prefix in ("", *(f"{tower}." for tower in _TOWERS)):
        if all(f"{prefix}{key}" in weights for key in own):
            return {key: weights[f"{prefix}{key}"] for key in own}
    return weights


def _check_shapes(planned: nn.Module, weights: Tensors, name: str) -> None:
    expected = {key: value.shape for key, value in planned.state_dict().items()}
    wrong = sorted(key for key in expected.keys() | weights.keys()
                   if key not in weights or expected.get(key) != weights[key].shape)  # fmt: skip
    if wrong:
        raise EncoderError(f"these weights do not fit the backbone {name}: {wrong[0]} is missing, or of another shape")


def _load_state(network: nn.Module, weights: Tensors, name: str) -> None:
    _check_shapes(network, weights, name)
    network.load_state_dict(weights)


def _values(network: nn.Module, side: int) -> list[Value]:
    """What the parts of a network give for two images, in the order in which they are done."""
    values: list[Value] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(_module: nn.Module, _inputs: object, output: object) -> None:
            found = _tensor(output) if name else _vector(output)
            if found is not None and found.ndim > 1 and len(found) == _IMAGES:
                shape = tuple(found.shape[1:])
                values.append(Value(name or OUTPUT, shape, name.count("."), series_of(name)))

        return note

    handles = [part.register_forward_hook(watch(name)) for name, part in network.named_modules()]
    try:
        _run(network, side, side)
    finally:
        for handle in handles:
            handle.remove()
    last = {value.name: value for value in values}  # of a part that is used twice, hooks keep what it gives last
    return [value for value in values if last[value.name] is value]


def _run(network: nn.Module, height: int, width: int) -> object:
    with torch.inference_mode():
        return network(torch.zeros(_IMAGES, 3, height, width))


def _tensor(output: object) -> torch.Tensor | None:
    """The tensor that a part gives, or the first of several."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def _vector(output: object) -> torch.Tensor | None:
    """The vector an image that a network gives in the end, if it gives one: (n, d)."""
    if isinstance(output, Mapping):
        output = next((output[key] for key in _VECTORS if output.get(key) is not None), None)
    found = _tensor(output)
    if found is not None and found.ndim > 2:
        found = found.flatten(1) if found[0].numel() == found.shape[1] else None  # (n, d, 1, 1)
    return found


def _takes_other_shapes(network: nn.Module, row: Backbone) -> bool:
    """Whether a network takes images that are not square, with maps of their shape."""
    if row.layout == "tokens":
        return False  # a sequence does not say where its rows end
    extractor = _Tapped(network, row)
    try:
        outputs = cast("dict[str, torch.Tensor]", _run(extractor, row.side, row.side + _STEP))
    except Exception:  # noqa: BLE001 - whatever it is that the network says of the shape
        return False
    axes = (2, 3) if row.layout == "nchw" else (1, 2)
    maps = [output for output in outputs.values() if output.ndim == 4]
    return bool(maps) and all(one.shape[axes[0]] <= one.shape[axes[1]] for one in maps)
