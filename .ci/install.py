"""Install into the environment that runs this: `PYTHON .ci/install.py REQUIREMENT...`, by uv, else by pip.

uv takes a third of pip's time, most of it for torch. It reads none of pip's settings, so those that say where packages
come from are handed to it; where there are others, where uv cannot be had, and where it fails, pip installs.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

TAKEN = {
    "index-url": ("UV_DEFAULT_INDEX", " "), "extra-index-url": ("UV_INDEX", " "), "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "), "trusted-host": ("UV_INSECURE_HOST", " "), "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "), "timeout": ("UV_HTTP_TIMEOUT", " "), "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}  # fmt: skip
"""Setting of pip -> variable of uv that does the same, and what stands between several values there."""
NO_MATTER = {
    "cache-dir", "disable-pip-version-check", "no-cache-dir", "no-input", "progress-bar", "quiet", "retries",
    "root-user-action", "verbose",
}  # fmt: skip
"""Settings of pip that do not change what is installed."""
UV = "uv>=0.8,<1"


def settings(listed: str) -> dict[str, str]:
    """The settings in the output of `pip config list` that concern an installation: name -> value.

    Environment variables go before what is set for `pip install`, and that before what is set for all of pip.
    """
    found = re.findall(r"^(global|install|:env:)\.([\w-]+)=(.*)$", listed, re.MULTILINE)
    found.sort(key=lambda each: ("global", "install", ":env:").index(each[0]))
    return {name.replace("_", "-"): str(ast.literal_eval(value)) for _, name, value in found}


def uv_environment(wanted: dict[str, str]) -> dict[str, str] | str:
    """Variables with which uv does as pip does with these settings, or the setting with which it cannot.

    Not options: the list of processes, which every user can see, would show passwords in them.
    """
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip: the newest of all indexes
    for name, value in wanted.items():
        if name in TAKEN:
            variable, between = TAKEN[name]
            variables[variable] = between.join(value.split())
        elif name not in NO_MATTER:
            return name
    return variables


def by_uv(requirements: list[str]) -> str:
    """Install by uv; empty, or in a few words why that cannot be."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True)
    prepared = uv_environment(settings(listed.stdout)) if not listed.returncode else "config list"
    if isinstance(prepared, str):
        return f"pip's setting {prepared} is none of uv's"
    if subprocess.run([*pip, "install", "--quiet", "--quiet", UV], stdin=subprocess.DEVNULL).returncode:
        return "uv cannot be installed"
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
    done = subprocess.run([*command, *requirements], env=os.environ | prepared)
    return f"uv ended with {done.returncode}" if done.returncode else ""


def main(words: list[str]) -> int:
    """Install; pip's exit code where uv does not."""
    if not (reason := by_uv(words)):
        return 0
    print(f"installing by pip: {reason}", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--quiet"]
    return subprocess.run([*pip, *words]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
