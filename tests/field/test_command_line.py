"""The command line itself: no combination of options and environment gives a traceback or harms the index.

``MGM_COMMANDS=500 MGM_COMMANDS_SEED=1000 pytest tests/field/test_command_line.py -s`` runs as many, and prints what
they did; ``python -m tests.field.commands SEED 1 FOLDER --start`` runs one of them as a shell does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mg_milvus.index import ImageIndex
from tests.field.commands import VALUES, commands, make_command, parameters
from tests.images import save_image
from tests.in_process import mgm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux'")

COUNT = int(os.environ.get("MGM_COMMANDS", "50"))
SEED = int(os.environ.get("MGM_COMMANDS_SEED", "0"))
CODES = {0, 1, 2, 3}
"""Exit codes as documented, but that of Ctrl-C."""
BUGS = ("Traceback", "a bug in", "Exception ignored", "UserWarning", "unexpected ")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "home"
    (folder / "photos").mkdir(parents=True)
    (folder / "empty").mkdir()
    for seed in range(6):
        save_image(folder / f"photos/{seed}.jpg", seed)
    (folder / "notes.txt").write_text("notes\n")
    (folder / "table.csv").write_text("path,label\nphotos/0.jpg,a\nphotos/1.jpg,b\n")
    assert mgm("ingest", "photos", cwd=folder).stdout.startswith("6 seen: 6 added")
    assert mgm("schema", "init", "--out", "schema.yaml", cwd=folder).returncode == 0
    return folder


def faults(record: dict[str, Any]) -> list[str]:
    """What is wrong with the end of a command."""
    said = record["out"] + record["err"]
    found = [bug for bug in BUGS if bug in said]
    if record["code"] not in CODES:
        found.append(f"exit code {record['code']}")
    findings = record["out"].strip() and " ".join(record["words"][:2]).startswith(("doctor", "schema diff"))
    if record["code"] == 1 and record["streams"][2] == "" and not record["err"].strip() and not findings:
        found.append("failed and said nothing")
    if record["changed"] and record["words"][0] not in {"delete", "doctor"}:
        found += harm(record)
    return found


def harm(record: dict[str, Any]) -> list[str]:
    """What a command took from the index, of which none but ``delete`` may take anything."""
    folder = Path(record["folder"])
    with ImageIndex.open(folder / "mgm.db", collection="images") as index:
        rows = index.count()
        first = index.query(folder / "photos/3.jpg", k=1)
    return [] if rows >= 6 and first[0].path.endswith("photos/3.jpg") else [f"the index has {rows} rows of 6"]


def test_commands_end_as_they_should(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.field.commands", str(SEED), str(COUNT), str(home)],
        cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=600 + 10 * COUNT,
    )  # fmt: skip
    records = [json.loads(line) for line in done.stdout.splitlines()]
    codes = Counter(record["code"] for record in records)
    slowest = max(records, key=lambda record: record["seconds"])
    print(f"\n{COUNT} commands: exit codes {dict(codes)}, slowest {slowest['seconds']} s ({slowest['words']})")
    wrong = [(found, record) for record in records if (found := faults(record))]
    for found, record in wrong:
        print(json.dumps({"found": found} | record, indent=1))
    assert len(records) == COUNT, done.stderr[-2000:]
    assert [(found, record["number"], record["words"]) for found, record in wrong] == []
    assert codes[0] > COUNT / 10  # or the combinations test nothing


def test_every_parameter_has_values() -> None:
    names = {parameter.name for command in commands().values() for parameter in parameters(command)}
    flags = {
        parameter.name for command in commands().values() for parameter in parameters(command)
        if getattr(parameter, "is_flag", False)
    }  # fmt: skip
    assert sorted(names - flags - VALUES.keys()) == []


def test_a_number_is_always_the_same_command() -> None:
    assert [make_command(number) for number in range(40)] == [make_command(number) for number in range(40)]
    assert len({make_command(number).words for number in range(40)}) > 30
