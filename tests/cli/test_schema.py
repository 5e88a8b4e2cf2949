"""``mgm schema`` as it is typed."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from mg_milvus.cli.schema import app
from mg_milvus.config import MilvusConfig
from mg_milvus.errors import SchemaError
from mg_milvus.schema.models import Schema
from mg_milvus.schema.yaml import commented_yaml
from mg_milvus.store.base import Description
from mg_milvus.store.milvus import open_store
from tests.forked import program
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    """Run `mgm schema` in this process; its errors are not yet made into a line and an exit code."""
    from typer.testing import CliRunner

    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def mgm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with no settings from the environment."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MGM_") or name == "MGM_RUNTIME"
    }
    return subprocess.run([program(), *arguments], capture_output=True, text=True, env=environment, timeout=PATIENCE)


def test_presets_are_listed_with_their_purpose() -> None:
    result = invoke("presets")
    assert result.exit_code == 0
    names = ["default", "compact", "precise", "regions", "regions-precise", "server"]
    assert [line.split()[0] for line in result.stdout.splitlines()] == names
    assert "compact          16 bytes an image" in result.stdout


def test_init_writes_the_commented_preset(folder: Path) -> None:
    result = invoke("init")
    assert result.exit_code == 0
    assert "mgm schema check mgm-schema.yaml" in result.stdout
    written = (folder / "mgm-schema.yaml").read_text()
    assert written == commented_yaml("default")
    assert "# which class" in written


def test_init_takes_a_preset_and_a_name(folder: Path) -> None:
    result = invoke("init", "--preset", "server", "--out", "my server.yaml")
    assert result.exit_code == 0
    assert Schema.load(folder / "my server.yaml").storage.index == "BIN_IVF_FLAT"


def test_init_overwrites_only_when_told_to(folder: Path) -> None:
    file = folder / "mgm-schema.yaml"
    file.write_text("# mine\n" * 1000)
    result = invoke("init")
    assert isinstance(result.exception, SchemaError)
    assert str(result.exception) == (
        "mgm-schema.yaml exists; choose another name with --out, or overwrite it with --force"
    )
    assert file.read_text() == "# mine\n" * 1000
    assert invoke("init", "--force").exit_code == 0
    assert file.read_text() == commented_yaml("default")


def test_init_prints_to_a_dash(folder: Path) -> None:
    result = invoke("init", "--preset", "compact", "--out", "-")
    assert result.stdout == commented_yaml("compact")
    assert list(folder.iterdir()) == []


def test_init_says_what_is_wrong(folder: Path) -> None:
    wrong_preset = invoke("init", "--preset", "compakt")
    assert str(wrong_preset.exception) == "'compakt' is not a preset; did you mean 'compact'?"
    no_folder = invoke("init", "--out", "no/such/file.yaml")
    assert isinstance(no_folder.exception, SchemaError)
    assert "no/such/file.yaml cannot be written: " in str(no_folder.exception)
    assert list(folder.iterdir()) == []


def test_check_says_what_a_good_file_makes(folder: Path) -> None:
    (folder / "s.yaml").write_text("collection: holidays\ngranularities:\n- {name: coarse, bits: 64}\n")
    result = invoke("check", "s.yaml")
    assert result.exit_code == 0
    assert result.stdout == "ok: s.yaml: collection holidays, coarse 64 bits = 8 bytes per image, index auto\n"
    assert result.stderr == ""


def test_check_lists_every_problem_on_standard_error(folder: Path) -> None:
    (folder / "s.yaml").write_text("granularities:\n- name: coarse\n  bitz: 64\n  bits: 7\n")
    result = invoke("check", "s.yaml")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "s.yaml:3: granularities[0].bitz: unknown key; did you mean 'bits'?",
        "s.yaml:4: granularities[0].bits: got 7, expected a multiple of 8",
    ]


def test_check_of_a_missing_file_names_the_presets() -> None:
    result = invoke("check", "mine.yaml")
    assert result.exit_code == 1
    assert result.stderr == (
        "'mine.yaml' is neither a schema file nor a preset; expected one of default, compact, precise, regions, "
        "regions-precise, server\n"
    )


@pytest.mark.parametrize("command", ["presets", "init", "check", "show", "diff"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"mgm schema {command}" in result.stdout.partition("Example")[2]


def test_show_and_diff_of_a_real_collection(folder: Path) -> None:
    (folder / "s.yaml").write_text(
        "collection: holidays\n"
        "granularities:\n"
        "- {name: coarse, bits: 32}\n"
        "- {name: fine, bits: 64, weight: 2}\n"
        "fields:\n"
        "- {name: label, type: string, default: none}\n"
    )
    store = open_store(MilvusConfig("p.db", collection="holidays"))
    store.create(Description(Schema.load("s.yaml"), fingerprint="0123456789abcdef"))
    store.close()

    shown = mgm("schema", "show", "--uri", "p.db", "--collection", "holidays")
    assert shown.returncode == 0, shown.stderr
    assert Schema.from_yaml(shown.stdout) == Schema.load("s.yaml")
    as_json = mgm("schema", "show", "--uri", "p.db", "--collection", "holidays", "--json")
    assert Schema.model_validate(json.loads(as_json.stdout)) == Schema.load("s.yaml")

    same = mgm("schema", "diff", "s.yaml", "--uri", "p.db")
    assert (same.returncode, same.stdout, same.stderr) == (0, "no differences\n", "")

    (folder / "new.yaml").write_text(
        (folder / "s.yaml").read_text().replace("bits: 64, weight: 2", "bits: 128, weight: 1")
    )
    differs = mgm("schema", "diff", "new.yaml", "--uri", "p.db")
    assert differs.returncode == 1, differs.stderr
    assert differs.stdout.splitlines() == [
        "granularities.fine.bits: 64 -> 128",
        "    re-ingest: codes of different lengths cannot be compared",
        "granularities.fine.weight: 2.0 -> 1.0",
        "    none: applies at query time; stored rows are unaffected (--weights)",
        "",
        "2 differences, 1 of them need a re-ingest; ingest into a new collection: "
        "mgm ingest IMAGES --schema FILE --collection NAME",
    ]
    lines = mgm("schema", "diff", "new.yaml", "--uri", "p.db", "--json").stdout.splitlines()
    assert [(d["key"], d["old"], d["new"], d["consequence"]) for d in map(json.loads, lines)] == [
        ("granularities.fine.bits", 64, 128, "re-ingest"),
        ("granularities.fine.weight", 2.0, 1.0, "none"),
    ]


def test_show_of_a_missing_collection_is_one_line(folder: Path) -> None:
    result = mgm("schema", "show", "--uri", "none.db", "--collection", "nowhere")
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("mgm: there is no index at none.db")
    assert list(folder.iterdir()) == []
