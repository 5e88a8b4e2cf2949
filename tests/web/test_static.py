"""The page's files agree with each other: ids that scripts look up exist, and so do the modules they import."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mg_milvus.web

WEB = Path(mg_milvus.web.__file__).parent
SCRIPTS = sorted((WEB / "static").glob("*.js"))
MARKUP = "\n".join(file.read_text() for file in [*(WEB / "templates").glob("*.jinja"), *SCRIPTS])
IDS = set(re.findall(r"""\bid(?:="|: ")([\w-]+)""", MARKUP))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_ids_of_scripts_exist(script: Path) -> None:
    assert set(re.findall(r"""\$\("#([\w-]+)""", script.read_text())) <= IDS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_imported_names_are_exported(script: Path) -> None:
    imports = re.findall(r'import \{([^}]+)\} from "\./(\w+\.js)"', script.read_text())
    for names, module in imports:
        exported = re.findall(
            r"^export (?:async )?(?:function|class|const) ([\w$]+)", (WEB / "static" / module).read_text(), re.M
        )
        assert {name.strip() for name in names.split(",")} - {""} <= set(exported), module


def test_labels_point_at_inputs() -> None:
    templates = "\n".join(file.read_text() for file in (WEB / "templates").glob("*.jinja"))
    assert set(re.findall(r'for="([\w-]+)"', templates)) <= IDS
