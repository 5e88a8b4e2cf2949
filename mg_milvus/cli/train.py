"""``mgm train``: hash functions learned from images and their labels."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import UNREADABLE, ProgressView, print_failures
from mg_milvus.cli.log import log_info
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.training.config import TrainingConfiguration
    from mg_milvus.training.train import TrainReport
    from mg_milvus.training.trainer import StepReport

_WHAT = "What is trained"


class Loss(StrEnum):
    """The losses of ``mg_milvus.training.losses.SUPERVISED``, named here so that help and completion are instant."""

    orthohash = "orthohash"
    csq = "csq"
    dsh = "dsh"
    hashnet = "hashnet"
    greedyhash = "greedyhash"


class Recipe(StrEnum):
    """The recipes of ``TrainingConfiguration``."""

    ours = "ours"
    paper = "paper"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        epilog="Example:\n\nmgm train labelled/ --out mine.safetensors      (a folder for each label)\n\n"
        "mgm ingest photos/ --encoder mine.safetensors"
    )(train)


def train(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder for each label; nested ones are a hierarchy, group/class")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="The encoder file, e.g. mine.safetensors")
    ],
    labels: options.LabelTable = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings as YAML; what is given as options goes before them"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole epoch of a training that was stopped")
    ] = False,
    stop_after: Annotated[
        int | None,
        typer.Option(
            "--stop-after", metavar="EPOCH", min=1, help="Leave after this epoch; --resume goes on from there"
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", metavar="NAME", help="efficientnet_lite0, resnet50, …", rich_help_panel=_WHAT),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="SOURCE",
            help="imagenet, scratch, or a file of weights",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            "--freeze",
            metavar="NAME,...",
            help="Parts of the backbone to leave alone: backbone, or stem,stage1",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    loss: Annotated[
        Loss | None, typer.Option("--loss", help="What labels are learned by, e.g. csq", rich_help_panel=_WHAT)
    ] = None,
    recipe: Annotated[
        Recipe | None,
        typer.Option(
            "--recipe",
            help="paper: hash layer, optimizer and rates as the paper of the loss has them; default: ours for all",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option(
            "--bits",
            metavar="NAME=BITS,...",
            help="Codes to train, e.g. mid=48; default coarse=64,mid=128,fine=256, without fine for --recipe paper",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over the images", rich_help_panel=_WHAT)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=2, help="Images per step, e.g. 128; default: 256, or the paper's", rich_help_panel=_WHAT
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=1e-9, help="Highest learning rate, e.g. 0.05", rich_help_panel=_WHAT)
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of all that is random", rich_help_panel=_WHAT)
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="FOLDER", help="Write curves for TensorBoard (the extra tensorboard)"),
    ] = None,
    report_folder: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FOLDER",
            file_okay=False,
            help="Write the curves there as index.html, one file that needs nothing else (the extra report)",
        ),
    ] = None,
    loaders: Annotated[
        int, typer.Option("--loaders", min=0, help="Processes that make batches, for a GPU; 0: none")
    ] = 0,
    as_json: options.AsJson = False,
    device: options.DeviceOption = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Train hash functions on labelled images, into an encoder file.

    Without label folders, clusters take the place of labels.
    """
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.html.report import check_report
    from mg_milvus.training.config import TrainingConfiguration as Configuration
    from mg_milvus.training.report import tensorboard_writer
    from mg_milvus.training.train import train as run

    given: dict[str, Any] = {"backbone": backbone, "init": init, "seed": seed}
    given["supervised"] = loss.value if loss is not None else None
    given["recipe"] = recipe.value if recipe is not None else None
    given["freeze"] = tuple(freeze.split(",")) if freeze is not None else None
    given["bits"] = options.code_lengths(bits) if bits is not None else None
    changes = {name: value for name, value in given.items() if value is not None}
    first = Configuration.load(config) if config else Configuration()
    configuration = first.changed(changes, epochs=epochs, rate=rate, batch=batch_size).with_recipe()
    settings = local_settings(device=device, workers=workers, max_pixels=max_pixels)
    if report_folder is not None:
        check_report(report_folder)
    with ProgressView() as view, tensorboard_writer(tensorboard) as write:

        def on_epoch(record: Mapping[str, float]) -> None:
            write(record)
            view.print_line(epoch_line(record, configuration.epochs), "epoch", **record)

        report = run(
            folder, out, configuration, labels=labels, resume=resume, stop_after=stop_after,
            device=settings.device, workers=settings.workers,
            loaders=loaders, progress=view,
            on_step=lambda step: view(_progress(step), _losses(step)), on_epoch=on_epoch,
        )  # fmt: skip
    if report_folder is not None:
        _write_page(report, report_folder, out, configuration)
    _finish(report, out, as_json=as_json)


def epoch_line(record: Mapping[str, float], epochs: int) -> str:
    """One epoch in a line: its losses, the mAP on held-out images, seconds."""
    metrics = {name.removeprefix("map_"): value for name, value in record.items() if name.startswith("map_")}
    rest = {k: v for k, v in record.items() if k not in {"epoch", "held_out", "seconds"} and not k.startswith("map_")}
    losses = ", ".join(f"{name} {value:.3f}" for name, value in rest.items())
    found = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    judged = f"; held-out mAP {found}" if metrics else ""
    return f"epoch {int(record['epoch'])} of {epochs}: loss {losses}{judged} ({record['seconds']:.0f} s)"


def _write_page(report: TrainReport, folder: Path, out: Path, configuration: TrainingConfiguration) -> None:
    from mg_milvus.training.report import write_training_report

    setup = [
        ("backbone", configuration.backbone),
        ("codes", ", ".join(f"{name} {bits} bits" for name, bits in configuration.bits.items())),
        ("rate", f"{configuration.optimisation.rate:g}"),
        ("batch", f"{configuration.optimisation.batch:,}"),
    ]
    if report.labels:
        setup += [("learned by", configuration.supervised), ("recipe", configuration.recipe)]
    page = write_training_report(report, folder, title=f"How {out.name} was trained", setup=setup)
    log_info(f"wrote {page}", "wrote", file=str(page))


def _progress(step: StepReport) -> Any:
    from mg_milvus.records import Progress

    return Progress(f"epoch {step.epoch} of {step.epochs}", step.done, step.total, 0)


def _losses(step: StepReport) -> str:
    return f"loss {sum(step.losses.values()):.3f}" if step.losses else "images that the frozen backbone has not seen"


def _finish(report: TrainReport, out: Path, *, as_json: bool) -> None:
    if as_json:
        failures = [{"path": failure.path, "reason": failure.reason} for failure in report.failures]
        record = {
            "file": str(out), "fingerprint": report.fingerprint, "bytes": report.bytes, "images": report.images,
            "held_out": report.held_out, "labels": dict(report.labels), "epochs": report.epochs,
            "best_epoch": report.best_epoch, "history": list(report.history), "seconds": round(report.seconds, 3),
            "failures": failures,
        }  # fmt: skip
        print(json.dumps(record))
    else:
        learned = " and ".join(f"{count:,} {level}" for level, count in report.labels.items()) or "clusters, no labels"
        print(
            f"{escape_controls(str(out))}: encoder {report.fingerprint}, {report.bytes / 1e6:.1f} MB, trained on "
            f"{report.images:,} images ({learned}) in {report.seconds:.0f} s; weights of "
            f"epoch {report.best_epoch} of {report.epochs}"
        )
    print_failures(report.failures, as_json=as_json)
    if report.failures:
        raise typer.Exit(UNREADABLE)
