"""Files of an evaluation: a run folder that can be repeated to the bit, and codes for other programs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus import __version__
from mg_milvus.codes import unpack
from mg_milvus.errors import MissingPackageError, QueryError
from mg_milvus.files import one_line, write_whole
from mg_milvus.images.discover import path_text
from mg_milvus.store.lite_workarounds import allow_scipy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mg_milvus.evaluation.encoded import Setup
    from mg_milvus.evaluation.protocols import Split
    from mg_milvus.evaluation.report import Details, Evaluation

    PathLike = str | os.PathLike[str]

CONFIGURATION, ENVIRONMENT = "configuration.json", "environment.json"
METRICS, PRECISIONS = "metrics.json", "average_precisions.jsonl"
FILES = (CONFIGURATION, ENVIRONMENT, METRICS, PRECISIONS)
PACKAGES = ("numpy", "onnxruntime", "torch", "torchvision", "pillow")
"""Whose versions may change a metric."""
CODE_FILES = (".npz", ".mat")
_SHOWN = 60
"""Characters of a value in a message."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder that holds one configuration and what came of it.

    Attributes:
        path: the folder; need not exist.
        configuration: all that determines the metrics on one machine, ready for JSON.
        images: the folder that paths are written relative to.
    """

    path: Path
    configuration: Mapping[str, Any]
    images: str

    def check(self) -> None:
        """Check before the work that the folder can be written, and holds this configuration or none.

        Raises:
            QueryError: it holds another configuration or other files, or cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = sorted({entry.name for entry in self.path.iterdir()} - set(FILES))
        except OSError as error:
            raise QueryError(f"'{self.path}' cannot be made: {error.strerror}; name a folder to write to") from error
        if others:
            raise QueryError(f"'{self.path}' holds {others[0]!r}, which is no file of a run; name an empty folder")
        if not (self.path / CONFIGURATION).exists():
            return
        different = next(_differences(self._read(CONFIGURATION), _plain(self.configuration)), None)
        if different is not None:
            raise QueryError(f"'{self.path}' holds a run of another configuration: {different}; name another folder")

    def keep(self, evaluation: Evaluation, environment: Mapping[str, Any]) -> dict[str, Any]:
        """Write what came of a run; of a repeated one, compare it with what is there, and leave that.

        Returns:
            ``{"folder", "reproduced", "differences"}``: None for the first run, else whether metrics and average
            precisions are the same to the bit, and the first differences of metrics and of the environment in words.

        Raises:
            QueryError: a file cannot be read or written.
        """
        files = {METRICS: _json(self._metrics(evaluation)), PRECISIONS: self._precisions(evaluation.runs)}
        result: dict[str, Any] = {"folder": str(self.path), "reproduced": None, "differences": []}
        try:
            if (self.path / CONFIGURATION).exists():
                same = all((self.path / name).read_bytes() == data for name, data in files.items())
                differences = [
                    next(_differences(self._read(name), now), None)
                    for name, now in ((METRICS, json.loads(files[METRICS])), (ENVIRONMENT, _plain(environment)))
                ]
                found = [] if same else [text for text in differences if text is not None]
                return result | {"reproduced": same, "differences": found}
            # The configuration comes last: a folder that has it is whole.
            files |= {ENVIRONMENT: _json(environment), CONFIGURATION: _json(self.configuration)}
            for name, data in files.items():
                write_whole(self.path / name, data)
        except OSError as error:
            raise QueryError(f"'{error.filename or self.path}' cannot be read or written: {error.strerror}") from error
        return result

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_bytes())
        except ValueError as error:
            raise QueryError(f"'{self.path / name}' is damaged ({error}); remove the folder or name another") from error

    def _metrics(self, evaluation: Evaluation) -> dict[str, Any]:
        metrics = evaluation.to_json()
        for own in (metrics, *metrics.get("runs", ())):
            own.pop("per_query", None)
        failures = [failure | {"path": relative(failure["path"], self.images)} for failure in metrics["failures"]]
        return metrics | {"failures": failures}

    def _precisions(self, runs: Sequence[Details]) -> bytes:
        """A line for each seed and query: its average precision in every ranking, with all digits."""
        lines = []
        for seed, details in zip(self.configuration["seeds"], runs, strict=True):
            columns = {name: own.headline.tolist() for name, own in details.scores.items()}
            for row, query in enumerate(details.queries):
                values = {name: column[row] for name, column in columns.items()}
                path = relative(query.path, self.images)
                lines.append(json.dumps({"seed": seed, "query": path, "average_precision": values}))
        return "".join(f"{line}\n" for line in lines).encode()


def configuration_of(setup: Setup) -> dict[str, Any]:
    """What a run's metrics depend on in its encoder, schema and settings."""
    return {
        "encoder": setup.encoder.fingerprint,
        "runtime": setup.encoder.runtime,
        "schema": setup.schema.model_dump(mode="json"),
        "batch_size": setup.settings.batch_size,
        "max_pixels": setup.settings.max_pixels,
    }


def environment_of(*given: PathLike | None) -> dict[str, Any]:
    """What a metric may depend on beside its configuration: versions, processor; and the paths that were given."""
    numpy = np.show_config(mode="dicts")
    blas = numpy.get("Build Dependencies", {}).get("blas", {})
    return {
        "mg-milvus": __version__,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "blas": " ".join(filter(None, (blas.get("name"), blas.get("version")))),
        "platform": platform.platform(),
        "processor": _processor(),
        "processor_features": numpy.get("SIMD Extensions", {}).get("found", []),
        "paths": [path_text(path) for path in given if path is not None],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name: Linux tells it in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def images_digest(split: Split, folder: PathLike) -> str:
    """Hash of names, sizes, labels and parts of the images of a split: 32 hex digits, BLAKE2b-128."""
    images, found = split.images, hashlib.blake2b(digest_size=16)
    parts = [set(rows.tolist()) for rows in (split.to_fit, split.database, split.queries)]
    for row, image in enumerate(images.images):
        names = [images.classes.names[label] for label in images.classes.members[row]] if images.classes else []
        roles = "".join(letter for letter, rows in zip("tdq", parts, strict=True) if row in rows)
        line = [relative(image.path, os.fspath(folder)), image.size, names, roles]
        found.update(json.dumps(line).encode() + b"\n")
    return found.hexdigest()


def relative(path: str, folder: PathLike) -> str:
    """A path, as ``path_text`` writes it, without the folder if it lies in it."""
    return path.removeprefix(path_text(folder).rstrip("/") + "/")


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _plain(values: Any) -> Any:
    """The values as JSON gives them back."""
    return json.loads(json.dumps(values))


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two JSON values, in words: ``schema.fusion.rrf_k was 60, now 20``."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield f"{name} was {one_line(json.dumps(before), _SHOWN)}, now {one_line(json.dumps(now), _SHOWN)}"


def check_codes_file(file: PathLike) -> None:
    """Check before the work whether codes can be written to a file.

    Raises:
        MissingPackageError: scipy is needed and not installed.
        QueryError: another ending, or no such folder.
    """
    path = Path(file)
    if path.suffix not in CODE_FILES:
        raise QueryError(f"'{path}' ends with '{path.suffix}', expected {' or '.join(CODE_FILES)}, for numpy or MATLAB")
    if not path.parent.is_dir():
        raise QueryError(f"'{path.parent}' is no folder; name a file in one that exists")
    if path.suffix == ".mat":
        allow_scipy()
        try:
            import scipy.io  # noqa: F401
        except ImportError as error:
            raise MissingPackageError(
                "a .mat file needs SciPy, which is not installed: pip install 'mg-milvus[mat]', or write .npz"
            ) from error


def write_codes(evaluation: Evaluation, file: PathLike) -> None:
    """Write the codes of queries and database, their labels and paths, of the first seed, for numpy or MATLAB.

    Arrays, a row for each image of both parts, in the order of their paths: ``codes_NAME`` (n, bits) int8, 1 where the
    bit is set, else -1, for each granularity; ``labels`` (n, classes) uint8; ``paths`` (n,); ``query`` and ``database``
    (n,) bool, whether it is one; and ``label_names`` (classes,).

    Raises:
        MissingPackageError, QueryError: as ``check_codes_file``, there are no queries, or it cannot be written.
    """
    check_codes_file(file)
    details = next(iter(evaluation.runs), None)
    if details is None or details.split.images.classes is None:
        raise QueryError("the protocol copies has no codes of queries to write; choose another")
    split, classes = details.split, details.split.images.classes
    rows = np.union1d(split.queries, split.database)
    of_database, of_queries = np.searchsorted(rows, split.database), np.searchsorted(rows, split.queries)
    arrays: dict[str, Any] = {}
    for name, codes in details.database_codes.items():
        bits = np.zeros((len(rows), codes.shape[1] * 8), np.int8)
        bits[of_queries], bits[of_database] = unpack(details.query_codes[name]), unpack(codes)
        arrays[f"codes_{name}"] = 2 * bits - 1
    arrays |= {
        "labels": classes.one_hot()[rows].astype(np.uint8),
        "query": np.isin(rows, split.queries),
        "database": np.isin(rows, split.database),
    }
    texts = {"paths": [split.images.images[row].path for row in rows], "label_names": list(classes.names)}
    data = io.BytesIO()
    if Path(file).suffix == ".mat":
        from scipy.io import savemat

        # Texts of different lengths are a cell array.
        cells = {name: np.array(own, dtype=object)[:, None] for name, own in texts.items()}
        savemat(data, arrays | cells, do_compression=True)
    else:
        arrays |= {name: np.array(own) for name, own in texts.items()}
        np.savez_compressed(data, **arrays)
    try:
        write_whole(Path(file), data.getvalue())
    except OSError as error:
        raise QueryError(f"'{file}' cannot be written: {error.strerror}") from error
