"""Write .ci/constraints.txt: the versions in this environment of everything that pyproject.toml names.

Run it with the environment that the tests have just passed in: `make constraints`. With `--lowest` it prints
constraints of the lowest versions that pyproject.toml allows, of everything that users install: `make test-lowest`.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FILE = ROOT / ".ci" / "constraints.txt"
HEAD = """\
# The newest versions that the tests passed with, of everything that pyproject.toml names; `make constraints` writes it.
#   pip install -c .ci/constraints.txt '.[web]'
"""


def direct() -> dict[str, Requirement]:
    """Name -> requirement, of the package and all of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(text) for group in groups for text in group]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def lowest() -> list[str]:
    """One constraint for each requirement with a lower bound; without the tools of tests and documents."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras if name not in ("demo", "dev", "docs"))]
    lines = {}
    for requirement in (Requirement(text) for group in groups for text in group):
        marker = f" ; {requirement.marker}" if requirement.marker else ""
        for bound in requirement.specifier:
            if bound.operator == ">=":
                lines[canonicalize_name(requirement.name)] = f"{requirement.name}=={bound.version}{marker}"
    return sorted(lines.values())


def main() -> None:
    """Write the file, or print the lowest versions."""
    if sys.argv[1:] == ["--lowest"]:
        print("\n".join(lowest()))
        return
    lines, missing = [], []
    for name, requirement in sorted(direct().items()):
        try:
            tested = version(name).partition("+")[0]  # a build for one platform counts as the version that it is of
        except PackageNotFoundError:
            missing.append(name)
            continue
        lines.append(f"{name}=={tested}" + (f" ; {requirement.marker}" if requirement.marker else ""))
    lines += [f"# not tested: {name}" for name in missing]
    FILE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
