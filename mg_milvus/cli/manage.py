"""``mgm delete``, ``mgm relocate``, ``mgm info``, ``mgm doctor`` and ``mgm cache``: maintenance of an index."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import ERROR, ProgressView, console
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mg_milvus.config import MilvusConfig
    from mg_milvus.store.conformance import Feature

CountedWhere = Annotated[
    str | None,
    typer.Option("--filter", metavar="EXPR", help="Count only images that match, e.g. 'width >= 800'"),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Examples:\n\nmgm delete photos/old.jpg\n\nmgm delete --filter 'width < 200' --yes")(delete)
    app.command(epilog="Examples:\n\nmgm relocate photos archive/photos\n\nmgm relocate /mnt/old /mnt/new")(relocate)
    app.command(epilog="Example: mgm info --uri http://localhost:19530")(info)
    app.command(epilog="Examples:\n\nmgm tags\n\nmgm tags --filter 'width >= 800'\n\nmgm tags --all")(tags)
    app.command(epilog="Examples:\n\nmgm facets folder\n\nmgm facets brand --filter 'price < 50'")(facets)
    app.command(
        epilog="Examples:\n\nmgm doctor --uri http://localhost:19530\n\n"
        "mgm doctor --conformance --uri http://localhost:19530"
    )(doctor)
    app.command(epilog="Examples:\n\nmgm cache\n\nmgm cache --clear")(cache)


def delete(
    ids_or_paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID_OR_PATH", help="Ids or paths of images, as mgm query prints them", show_default=False
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="EXPR", help="Delete all rows that match, e.g. 'path like \"/old/%\"'"),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask for confirmation: mgm delete --filter EXPR --yes")
    ] = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Delete rows from the index; image files are not touched."""
    from mg_milvus.cli.settings import open_index, settings_from

    options.require_one_choice(ids_or_paths, where)
    with open_index(settings_from(uri, token, collection), timeout=timeout) as index:
        if where is None:
            deleted = index.delete(ids_or_paths or [])
        else:
            rows = index.count(where)
            if yes:
                print(f"the filter matches {_rows(rows)} of {index.count():,}", file=sys.stderr)
            else:
                _confirm(rows, index.collection)
            deleted = index.delete_where(where)
    print(f"{_rows(deleted)} deleted")


def relocate(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Folder or file as it was ingested; it need not exist")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Where it is now")],
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Move the rows of a folder that was moved or renamed; no image is read or encoded again."""
    from mg_milvus.cli.settings import open_index, settings_from

    with open_index(settings_from(uri, token, collection), timeout=timeout) as index, ProgressView() as view:
        report = index.relocate(old, new, progress=view)
    if as_json:
        print(json.dumps(report.as_dict()))
        return
    print(f"{_rows(report.moved)} moved")
    if report.absent:
        print(f"{_rows(report.absent)} not moved: the new folder does not hold their files")
    if report.taken:
        print(f"{_rows(report.taken)} not moved: their files have rows at the new place; mgm delete removes either")


def _confirm(rows: int, collection: str) -> None:
    if not rows:
        return
    if not sys.stdin.isatty():
        raise options.UsageError(
            f"the filter matches {_rows(rows)} and there is no terminal to confirm at; add --yes to delete them"
        )
    if not typer.confirm(f"Delete {_rows(rows)} of '{collection}'?", err=True):
        print("Nothing was deleted.")
        raise typer.Exit(ERROR)


def _rows(number: int) -> str:
    return f"{number:,} row" + ("" if number == 1 else "s")


def info(
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Describe the index: rows, granularities, encoder, and advice."""
    from mg_milvus.cli.settings import open_index, settings_from

    with open_index(settings_from(uri, token, collection), timeout=timeout) as index:
        report = index.info()
    if as_json:
        print(json.dumps(report.as_dict()))
        return
    granularities = ", ".join(f"{g['name']} {g['bits']} bits" for g in report.schema["granularities"])
    for label, value in (
        ("collection", report.collection),
        ("uri", f"{report.uri} ({report.server})"),
        ("rows", f"{report.rows:,}"),
        ("granularities", granularities),
        ("bytes per image", f"{report.bytes_per_image:,}"),
        ("encoder", f"{report.fingerprint} ({report.backbone}, heads {report.heads})"),
        ("regions", _regions(report.schema["regions"])),
        ("fusion", report.schema["fusion"]["method"]),
        ("extra fields", ", ".join(f"{f['name']} ({f['type']})" for f in report.schema["fields"]) or "none"),
    ):
        print(f"{label:<19}{escape_controls(str(value))}")
    for sentence in report.advice:
        print(f"\nadvice: {escape_controls(sentence)}")


def _regions(regions: Mapping[str, Any] | None) -> str:
    if regions is None:
        return "none"
    scales = ", ".join(f"{s['grid']}x{s['grid']} of {s['size']:g}" for s in regions["scales"])
    return f"{regions['bits']} bits each: {scales} of the image's sides"


def tags(
    where: CountedWhere = None,
    every: Annotated[
        bool, typer.Option("--all", help="List the words that --text and filters know instead: mgm tags --all")
    ] = False,
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Count what the images show, by the names and groups that the encoder gave them at the ingest."""
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.schema.tags import vocabulary

    if every:
        known = sorted(vocabulary().known.values(), key=str.casefold)
        print(json.dumps(known) if as_json else "\n".join(known))
        return
    with open_index(settings_from(uri, token, collection), timeout=timeout) as index:
        counts = index.tags(where)
    if as_json:
        print(json.dumps(counts))
    else:
        _print_counts(counts)


def facets(
    field: Annotated[
        str, typer.Argument(metavar="FIELD", help="Any field of the images; or folder, name, date (months), tag")
    ],
    where: CountedWhere = None,
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Count the images that have each value of a field, the most frequent first; -: those without a value."""
    from mg_milvus.cli.settings import open_index, settings_from

    with open_index(settings_from(uri, token, collection), timeout=timeout) as index:
        counts = index.facets(field, where)
    if as_json:  # values are not always texts, as the keys of an object would be
        print(json.dumps([{"value": value, "count": count} for value, count in counts.items()]))
    else:
        _print_counts({"-" if value is None else escape_controls(str(value)): count for value, count in counts.items()})


def _print_counts(counts: Mapping[str, int]) -> None:
    width = max((len(f"{count:,}") for count in counts.values()), default=0)
    for name, count in counts.items():
        print(f"{count:>{width},}  {name}")


def doctor(
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Also delete codes of regions without an image, and rebuild an index that no longer fits the number "
            "of rows: mgm doctor --repair",
        ),
    ] = False,
    recall: Annotated[
        bool, typer.Option("--recall", help="Also measure the index's recall against exact search: mgm doctor --recall")
    ] = False,
    conformance: Annotated[
        bool,
        typer.Option(
            "--conformance",
            help="Instead, try out every feature of the store on the server, in scratch collections that are removed "
            "again, and print a table of what works: mgm doctor --conformance",
        ),
    ] = False,
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    device: options.DeviceOption = None,
) -> None:
    """Check packages, device, encoder and Milvus, and print a remedy for each problem."""
    from rich.text import Text

    from mg_milvus.cli.settings import settings_from
    from mg_milvus.doctor import examine

    settings = settings_from(uri, token, collection, device)
    if conformance:
        if repair or recall:
            raise options.UsageError(
                "--conformance tries out the server, not a collection: leave --repair and --recall"
            )
        _print_conformance(settings.milvus(timeout), as_json=as_json)
        return
    out = console()
    checks = []
    for check in examine(settings.milvus(timeout), device=settings.device, recall=recall, repair=repair):
        checks.append(check)
        if not as_json:
            mark = Text("ok   ", style="green") if check.ok else Text("FAIL ", style="bold red")
            out.print(mark + Text(f"{check.name}: {escape_controls(check.message)}"))
            if check.remedy:
                out.print(Text(f"     remedy: {escape_controls(check.remedy)}", style="yellow"))
    failed = sum(not check.ok for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
    else:
        print(f"\n{failed} of {len(checks)} checks failed." if failed else f"\nAll {len(checks)} checks passed.")
    if failed:
        raise typer.Exit(ERROR)


def _print_conformance(config: MilvusConfig, *, as_json: bool) -> None:
    from rich.text import Text

    from mg_milvus.store.conformance import conformance

    out = console()
    styles = {"works": "green", "refused": "yellow", "fails": "bold red", "not tried": "red"}

    def print_row(feature: Feature) -> None:
        row = Text(f"{feature.name:<30}") + Text(f"{feature.outcome:<11}", style=styles[feature.outcome])
        out.print(row + Text(escape_controls(feature.message)))

    report = conformance(config, None if as_json else print_row)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        packages = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        print(f"\n{escape_controls(report.server)}; {packages}")
        counts = Counter(feature.outcome for feature in report.features)
        print(", ".join(f"{number} {outcome}" for outcome, number in counts.items()))
        for name in report.left:
            print(f"scratch collection '{escape_controls(name)}' is left: drop it, unless another run uses it now")
    if not report.ok:
        raise typer.Exit(ERROR)


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete what can be restored: mgm cache --clear")] = False,
) -> None:
    """Show the size of the caches: thumbnails of the web page, copies of collections' encoders, verdicts on pairs."""
    from mg_milvus.duplicates.verdicts import cache_file, clear_verdicts, kept_verdicts
    from mg_milvus.session import cache_folder, cached_encoders, clear_encoders
    from mg_milvus.web.media import Thumbnails, default_folder

    thumbnails = Thumbnails(default_folder(), 0)
    if clear:
        thumbnails.clear()
        clear_verdicts()
        kept = clear_encoders()
        for file in kept:
            print(
                f"kept {escape_controls(str(file))}: no collection has a complete copy of this encoder; "
                "delete the file if you do not need it"
            )
    _print_cache("thumbnails", _files(thumbnails.usage()[0]), thumbnails.usage()[1], default_folder())
    sizes = cached_encoders().values()
    _print_cache("encoders", _files(len(sizes)), sum(sizes), cache_folder())
    pairs, size = kept_verdicts()
    _print_cache("verdicts", f"{pairs:,} pair" + ("" if pairs == 1 else "s"), size, cache_file())


def _files(count: int) -> str:
    return f"{count:,} file" + ("" if count == 1 else "s")


def _print_cache(what: str, count: str, size: int, place: Path) -> None:
    print(f"{what:<10}  {count:>15}  {size / 1e6:>10,.1f} MB  {escape_controls(str(place))}")
