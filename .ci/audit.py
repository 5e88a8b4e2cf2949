"""Known vulnerabilities of what an environment has installed: `python .ci/audit.py ENVIRONMENT`; `make audit` runs it.

pip-audit asks for them, in an environment of its own. A finding ends with exit status 1, unless .ci/audit-accepted.txt
lists it with a reason. Where pip-audit or its data cannot be had, one line says so, and nothing fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ACCEPTED = ROOT / ".ci" / "audit-accepted.txt"
TOOL = ROOT / "build" / "audit"
PATIENCE = 180
"""Seconds for the installation of pip-audit, and again for its queries."""


def accepted(text: str) -> dict[str, str]:
    """Id of a finding -> why it does not concern us; a line each, ``#`` begins a comment."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = {name: reason.strip() for name, _, reason in (line.partition(" ") for line in lines)}
    if bare := [name for name, reason in found.items() if not reason]:
        raise SystemExit(f"{ACCEPTED.name} gives no reason for {', '.join(bare)}")
    return found


def judge(report: dict[str, Any], known: dict[str, str]) -> tuple[list[str], bool]:
    """What to print of pip-audit's report, and whether nothing is wrong."""
    skipped = [found for found in report["dependencies"] if "skip_reason" in found]
    checked = [found for found in report["dependencies"] if "skip_reason" not in found]
    if not checked:
        return [f"audit: nothing is known of any of {len(skipped)} packages, so nothing was checked"], True
    lines, fine = [f"audit: {len(checked)} packages checked, {len(skipped)} unknown"], True
    for package in checked:
        for finding in package["vulns"]:
            reasons = [known[name] for name in (finding["id"], *finding.get("aliases", ())) if name in known]
            fixed = ", ".join(finding["fix_versions"]) or "no version yet"
            fine &= bool(reasons)
            end = f"accepted: {reasons[0]}" if reasons else f"fixed in {fixed}"
            lines.append(f"  {package['name']} {package['version']}: {finding['id']}; {end}")
    return lines, fine


def installed(python: Path) -> list[str]:
    """Names and versions in an environment, without our own, and without what only an index of builds knows."""
    listed = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "list", "--format=json"],
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    packages = [package for package in json.loads(listed.stdout) if "editable_project_location" not in package]
    return [f"{package['name']}=={package['version'].partition('+')[0]}" for package in packages]


def asked(packages: list[str]) -> dict[str, Any] | str:
    """pip-audit's report, or in one line why there is none."""
    tool = TOOL / "bin" / "pip-audit"
    try:
        if not tool.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", TOOL], check=True, capture_output=True, timeout=60)
            subprocess.run(
                [TOOL / "bin" / "python", "-m", "pip", "install", "--quiet", "pip-audit"],
                check=True, capture_output=True, text=True, timeout=PATIENCE,
            )  # fmt: skip
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
            listed.write("\n".join(packages))
            listed.flush()
            done = subprocess.run(
                [tool, "--requirement", listed.name, "--no-deps", "--disable-pip", "--format=json", "--timeout=10",
                 "--progress-spinner=off"],
                capture_output=True, text=True, timeout=PATIENCE,
            )  # fmt: skip
        report: dict[str, Any] = json.loads(done.stdout)
        return report
    except subprocess.TimeoutExpired as error:
        return f"no answer within {error.timeout:.0f} s"
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines() if isinstance(error.stderr, str) else []
        return f"pip-audit cannot be installed{': ' + said[-1] if said else ''}"
    except (ValueError, OSError) as error:
        return f"pip-audit gave no report ({type(error).__name__})"


def main(environment: str) -> int:
    """Print what was found; 1 when something is wrong."""
    report = asked(installed(Path(environment) / "bin" / "python"))
    if isinstance(report, str):
        print(f"audit: the data cannot be had here, so nothing was checked: {report}")
        return 0
    lines, fine = judge(report, accepted(ACCEPTED.read_text(encoding="utf-8")))
    print("\n".join(lines))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
