"""What pyproject.toml names, the constraints, and the audit of what is installed."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit, constraints, install = script("audit"), script("constraints"), script("install")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
LINES = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
PINS = {canonicalize_name(Requirement(line).name): Requirement(line) for line in LINES if line and line[0] != "#"}
UNTESTED = {line.removeprefix("# not tested: ") for line in LINES if line.startswith("# not tested: ")}


def test_every_direct_dependency_has_its_tested_version() -> None:
    direct = constraints.direct()
    assert set(PINS) | UNTESTED == set(direct)
    assert not set(PINS) & UNTESTED
    base = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert not base & UNTESTED
    for name, pin in PINS.items():
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert "+" not in exact.version, "a build for one platform"
        assert direct[name].specifier.contains(exact.version, prereleases=False), f"{pin} is not in {direct[name]}"
        assert pin.marker == direct[name].marker, name


def test_a_package_has_the_same_bounds_wherever_it_is_named() -> None:
    bounds: dict[str, set[str]] = {}
    for texts in GROUPS.values():
        for requirement in map(Requirement, texts):
            bounds.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_every_package_has_a_lower_bound() -> None:
    """setuptools alone has none: any that still has pkg_resources does."""
    bare = {
        requirement.name
        for texts in GROUPS.values()
        for requirement in map(Requirement, texts)
        if not any(bound.operator in {">=", "=="} for bound in requirement.specifier)
    }
    assert bare == {"setuptools"}


def test_what_is_imported_is_named() -> None:
    """Also what comes along with another package today."""
    packages = {
        "PIL": "pillow", "yaml": "pyyaml", "grpc": "grpcio", "pydantic_core": "pydantic",  # pinned by pydantic
        "cv2": "opencv-python-headless",
    }  # fmt: skip
    named = set(constraints.direct()) | {"mg-milvus"}
    missing = {}
    for file in (ROOT / "mg_milvus").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names:
                name = canonicalize_name(packages.get(top, top))
                if name not in named:
                    missing[name] = str(file.relative_to(ROOT))
    assert missing == {}


REPORT: dict[str, Any] = {
    "dependencies": [
        {"name": "fine", "version": "1", "vulns": []},
        {"name": "torch", "skip_reason": "not found"},
        {"name": "bad", "version": "2", "vulns": [
            {"id": "PYSEC-1", "fix_versions": ["3"], "aliases": ["CVE-1"], "description": "long"},
            {"id": "PYSEC-2", "fix_versions": [], "aliases": [], "description": "long"},
        ]},
    ]
}  # fmt: skip


def test_a_finding_fails_unless_it_is_accepted_with_a_reason() -> None:
    lines, fine = audit.judge(REPORT, {})
    assert not fine
    assert lines == [
        "audit: 2 packages checked, 1 unknown",
        "  bad 2: PYSEC-1; fixed in 3",
        "  bad 2: PYSEC-2; fixed in no version yet",
    ]
    assert audit.judge(REPORT, {"PYSEC-2": "not used"})[1] is False
    lines, fine = audit.judge(REPORT, {"CVE-1": "never given what strangers send", "PYSEC-2": "not used"})
    assert fine
    assert lines[1:] == [
        "  bad 2: PYSEC-1; accepted: never given what strangers send", "  bad 2: PYSEC-2; accepted: not used",
    ]  # fmt: skip


def test_what_was_not_checked_is_not_called_fine() -> None:
    """pip-audit itself ends well, and says that nothing is vulnerable, where its service knows none of the packages."""
    report = {"dependencies": [{"name": "torch", "skip_reason": "not found"}]}
    assert audit.judge(report, {}) == (["audit: nothing is known of any of 1 packages, so nothing was checked"], True)


def test_accepted_findings_have_reasons() -> None:
    audit.accepted(audit.ACCEPTED.read_text())
    assert audit.accepted("# note\n\nCVE-1 never used\n") == {"CVE-1": "never used"}
    with pytest.raises(SystemExit, match="no reason for CVE-2"):
        audit.accepted("CVE-1 never used\nCVE-2\n")


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("", 0, "the data cannot be had here, so nothing was checked: pip-audit gave no report"),
        (json.dumps({"dependencies": [{"name": "a", "skip_reason": "x"}]}), 0, "nothing is known of any of 1 packages"),
        (json.dumps(REPORT), 1, "bad 2: PYSEC-1; fixed in 3"),
        (None, 0, "the data cannot be had here, so nothing was checked: no answer within"),
    ],
)
def test_the_audit_ends_with_the_right_status(
    output: str | None, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tool = tmp_path / "bin" / "pip-audit"
    tool.parent.mkdir()
    answer = "import time; time.sleep(60)" if output is None else f"print({output!r})"
    tool.write_text(f"#!{sys.executable}\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(audit, "TOOL", tmp_path)
    monkeypatch.setattr(audit, "PATIENCE", 2 if output is None else 60)
    monkeypatch.setattr(audit, "installed", lambda python: ["a==1"])
    assert audit.main(str(tmp_path)) == code
    told = capsys.readouterr().out
    assert said in told
    assert code or told.count("\n") == 1


def test_builds_for_one_platform_are_asked_about_by_their_version(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        {"name": "torch", "version": "2.9.0+cpu"},
        {"name": "mg-milvus", "version": "0.1.0", "editable_project_location": "/x"},
    ]
    monkeypatch.setattr(
        audit.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, json.dumps(listed), "")
    )
    assert audit.installed(Path("python")) == ["torch==2.9.0"]


LISTED = """\
:env:.cert='/etc/ssl/ca.crt'
:env:.default-timeout='180'
global.cert='/etc/ssl/other.crt'
global.constraint='/etc/constraints.txt'
global.extra-index-url='file:///one file:///two'
global.index-url='https://index.example/simple'
install.find-links='/opt/wheels /opt/more'
install.index-url='https://own.example/simple'
freeze.timeout='10'
"""


def test_the_settings_of_pip_become_variables_of_uv() -> None:
    """The environment goes before what is set for `pip install`, and that before what is set for all of pip."""
    assert install.uv_environment(install.settings(LISTED)) == {
        "SSL_CERT_FILE": "/etc/ssl/ca.crt",
        "UV_CONSTRAINT": "/etc/constraints.txt",
        "UV_DEFAULT_INDEX": "https://own.example/simple",
        "UV_FIND_LINKS": "/opt/wheels,/opt/more",
        "UV_HTTP_TIMEOUT": "180",
        "UV_INDEX": "file:///one file:///two",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert install.uv_environment(install.settings("global.require-hashes='true'\n")) == "require-hashes"


@pytest.mark.parametrize(
    ("failing", "tools", "reason"),
    [
        ("", ["config", "install", "uv"], ""),
        ("config", ["config", "pip"], "pip's setting config list is none of uv's"),
        ("install", ["config", "install", "pip"], "uv cannot be installed"),
        ("uv", ["config", "install", "uv", "pip"], "uv ended with 1"),
    ],
)
def test_pip_installs_where_uv_does_not(
    failing: str, tools: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        tool = "uv" if command[2] == "uv" else "config" if "config" in command else "install"
        ran.append("pip" if tool == "install" and "torch" in command else tool)
        return subprocess.CompletedProcess(command, int(ran[-1] == failing), "")

    monkeypatch.setattr(install.subprocess, "run", run)
    assert install.main(["torch"]) == 0
    assert ran == tools
    assert capsys.readouterr().err == (f"installing by pip: {reason}\n" if reason else "")
