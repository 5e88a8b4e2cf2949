"""Near-duplicates: a folder of images and as many edited copies, given to imagededup and to mg-milvus.

Each copy is made by one edit of middling strength, the edits in turn. A pair that is found is right when it is an
image and its own copy. Every tool runs in a process of its own with the settings it comes with: perceptual hashes up
to 10 bits apart, CNN features of cosine 0.9 and more, ``mgm duplicates`` with its precision of 0.99. imagededup's CNN
gets the very network that mg-milvus ships, at its size. ``bulk.encode`` does what its ``encode_images`` does, into
a file; ``ingest`` also fits hash heads and fills Milvus Lite. Times are those of processors.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from short.turns import spent

from mg_milvus.bulk import encode
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.augment import AUGMENTATIONS
from mg_milvus.images.decode import open_image
from mg_milvus.index import ImageIndex
from side_by_side.measuring import alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Result = TypeVar("Result")

COPY = "-copy"


def write_copies(originals: Sequence[Path], out: Path) -> None:
    """The images as they are, and an edited copy of each."""
    edits = [edit for name, edit in AUGMENTATIONS.items() if name != "all"]
    for number, original in enumerate(originals):
        shutil.copy(original, out / f"{number:05}{original.suffix}")
        copy = edits[number % len(edits)].apply(open_image(original).image, "medium")
        copy.save(out / f"{number:05}{COPY}.jpg", quality=90)


def scored(pairs: Iterable[frozenset[str]], copies: int) -> dict[str, float]:
    """Recall and precision of pairs of file names without their ending."""
    found = set(pairs)
    right = sum(len({name.removesuffix(COPY) for name in pair}) == 1 for pair in found)
    return {"recall": right / copies, "precision": right / len(found) if found else 1.0, "pairs": len(found)}


def imagededup_hash(folder: str, method: str, copies: int) -> dict[str, Any]:
    from imagededup import methods

    return _imagededup(getattr(methods, method)(verbose=False), folder, copies)


def imagededup_cnn(folder: str, copies: int) -> dict[str, Any]:
    import torch
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel
    from torchvision import transforms

    from mg_milvus.encoder.torch_runtime import TorchEncoder

    encoder = load_encoder("builtin")
    torched = TorchEncoder(encoder.state, device="cpu")
    network, row = torched._network, torched.row

    class Pooled(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            last = list(network(images).values())[-1]
            return last.mean((2, 3))

    side = encoder.side
    prepare = transforms.Compose([
        transforms.Resize((side, side)), transforms.ToTensor(), transforms.Normalize(row.mean, row.std)
    ])  # fmt: skip
    cnn = CNN(verbose=False, model_config=CustomModel("the same network", Pooled(), prepare))
    return _imagededup(cnn, folder, copies)


def _imagededup(tool: Any, folder: str, copies: int) -> dict[str, Any]:
    codes, encoding = timed(lambda: tool.encode_images(image_dir=folder))
    found, search = timed(lambda: tool.find_duplicates(encoding_map=codes))
    return {"encoding ms": 1000 * encoding / len(codes), "search s": search, **scored(_pairs(found), copies)}


def encoding(folder: str, out: str) -> dict[str, Any]:
    report, seconds = timed(lambda: encode.encode(folder, out=out, encoder="builtin"))
    return {"encoding ms": 1000 * seconds / report.encoded}


def mg_milvus(folder: str, uri: str, copies: int) -> dict[str, Any]:
    with ImageIndex.open(uri) as index:
        report, seconds = timed(lambda: index.ingest(folder))
        found, search = timed(index.duplicates)
    pairs = {
        frozenset((Path(a.path).stem, Path(b.path).stem))
        for group in found.groups
        for place, a in enumerate(group.members)
        for b in group.members[:place]
    }
    return {"encoding ms": 1000 * seconds / report.added, "search s": search, **scored(pairs, copies)}


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What it returns, and seconds of processors, of this process and those it starts."""
    start = spent()
    result = work()
    return result, spent() - start


def _pairs(found: dict[str, list[str]]) -> set[frozenset[str]]:
    return {frozenset((Path(name).stem, Path(other).stem)) for name, others in found.items() for other in others}


def compare(originals: Sequence[Path], work: Path) -> dict[str, dict[str, float]]:
    """Tool -> figures."""
    folder = work / "copies"
    folder.mkdir()
    write_copies(originals, folder)
    copies = len(originals)
    return {
        "imagededup PHash": alone(imagededup_hash, str(folder), "PHash", copies),
        "imagededup DHash": alone(imagededup_hash, str(folder), "DHash", copies),
        "imagededup CNN, same network": alone(imagededup_cnn, str(folder), copies),
        "mg-milvus, codes in a file": alone(encoding, str(folder), str(work / "codes")),
        "mg-milvus, fitting and Milvus Lite included": alone(mg_milvus, str(folder), str(work / "copies.db"), copies),
    }
