"""HTML pages of one file that need no network: what the report and the comparison share."""

import base64
import hashlib
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from .results import printable


def render(template: str, **values: Any) -> bytes:
    """A page of this folder's templates, in UTF-8. All strings are escaped.

    Args:
        template: the name of its file.
        values: what it shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__.rpartition(".")[0], ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {"figure": figure, "signed": signed, "direction": direction}
    script = resources.files(__package__).joinpath("sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template(template).render(
        script=Markup(script), script_hash=f"sha256-{digest}", **values
    )
    return html.encode()


def figure(value: float | None, digits: int = 1) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """A difference with its sign, or a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if direction(value, digits) else text[1:]


def direction(value: float | None, digits: int = 1) -> str:
    """The CSS class of a difference, by its sign as it is shown."""
    rounded = round(value or 0, digits)
    return "better" if rounded > 0 else "worse" if rounded < 0 else ""


def difference(a: float | None, b: float | None) -> float | None:
    """a - b, or None where one of them is."""
    return None if a is None or b is None else a - b
