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

from mg_milvus.encoder.backbones import EXTRAS, IMAGENET_MEAN, IMAGENET_STD, LIBRARIES, Backbone
from mg_milvus.encoder.taps import OUTPUT, Value, choose_taps, described, named_taps, series_of
from mg_milvus.errors import EncoderError, MissingPackageError, WeightsNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

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
_VECTORS = ("image_embeds", "pooler_output")
"""Fields of an output of transformers that are a vector an image."""
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
    """

    network: nn.Module
    side: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    architecture: str = ""


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
    return Model(visual, side, tuple(visual.image_mean), tuple(visual.image_std))


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
    return Model(network, side, mean, std, json.dumps(whole.config.to_diff_dict(), sort_keys=True))


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
    """The vision tower of a network of transformers."""
    for tower in _TOWERS:
        if isinstance(found := getattr(network, tower, None), nn.Module):
            return found
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
