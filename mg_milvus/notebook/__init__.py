"""How results show themselves in a notebook: HTML in the look of the result pages, that changes nothing around it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_milvus.display import shown

if TYPE_CHECKING:
    from jinja2 import Template

SIDE = 200
"""Longest side of a thumbnail in pixels."""

_HERE = Path(__file__).parent

_LIGHT = ('[data-jp-theme-light="true"]', "html[theme=light]", ".vscode-light")
_DARK = ('[data-jp-theme-light="false"]', "html[theme=dark]", ".vscode-dark", ".vscode-high-contrast")
"""How JupyterLab, Colab and VS Code mark their themes, which need not be the system's."""


def render(template: str, **values: Any) -> str:
    """An HTML fragment: the template with what is shown, escaped, and the style that holds inside of it only."""
    return _template(template).render(style=_style(), **values)


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.jinja")


@cache
def _style() -> str:
    """The style sheet, with the palette of the result pages: light, dark, and as the notebook's theme says."""
    pages = (_HERE.parent / "pages" / "result.css").read_text(encoding="utf-8")
    light, dark = (" ".join(block.split()) for block in re.findall(r":root \{(.*?)\}", pages, re.DOTALL)[:2])
    light, dark = light.replace("color-scheme: light dark", "color-scheme: light"), f"color-scheme: dark; {dark}"
    rules = [f".mgm {{ {light} }}", f"@media (prefers-color-scheme: dark) {{ .mgm {{ {dark} }} }}"]
    rules += [f"{theme} .mgm {{ {light} }}" for theme in _LIGHT] + [f"{theme} .mgm {{ {dark} }}" for theme in _DARK]
    return "\n".join([*rules, (_HERE / "notebook.css").read_text(encoding="utf-8")])
