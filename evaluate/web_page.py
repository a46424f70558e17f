"""The HTML of every report: one Jinja environment, one base page with its content policy, one style sheet.

No page requests anything from the network. Labels, class names and file names are data to it: they are escaped, and no script runs but
the package's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluate import number_format

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = ("number", "short", "signed", "probability", "percent", "points", "again", "name", "url", "anchor")


def environment(**filters: Callable[..., Any]) -> Environment:
    """The templates, with all formats of ``number_format`` as filters, and more."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    found.filters.update({name: getattr(number_format, name) for name in FILTERS}, **filters)
    return found


def resource(file: str) -> str:
    """The text of a style sheet or a script."""
    return (TEMPLATES / file).read_text(encoding="utf-8")


def render_page(template: str, data: dict[str, Any], *, styles: str = "", script: str = "", **filters: Any) -> str:
    """A page in one file, with the common style sheet, another one and a script inside; its bytes depend only on the data."""
    code = resource(script) if script else ""
    return environment(**filters).get_template(template).render(
        **data,
        style=Markup(resource("style.css") + (resource(styles) if styles else "")),
        script=Markup(code),
        script_hash=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
    )  # fmt: skip
