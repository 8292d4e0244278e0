"""Pages from templates, which escape all that they are given; only ``templates/trusted.html`` says what is markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from isthmus.errors import MissingExtraError
from isthmus.plot.figures import svg_text
from isthmus.shown import upward
from isthmus.storage.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

NONE = "\N{EN DASH}"


class PageTable(NamedTuple):
    """Rows with their headings, and what they are about."""

    caption: str
    heading: Sequence[str]
    rows: Sequence[Sequence[object]]


class Picture(NamedTuple):
    """A still figure, and what it shows, for those who do not see it."""

    svg: str
    alt: str


def picture(figure: Figure, name: str, alt: str) -> Picture:
    """`figure` with names of its parts that begin with `name`, so that no picture of a page takes those of another."""
    text = re.sub(r'<g id="path">', "<g>", svg_text(figure))  # of several lines, as matplotlib names them for itself
    return Picture(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text), alt)


def write_page(out: Path, template: str, **values: Any) -> Path:
    """Write the page that a template makes of plain values. Errors: ``MissingExtraError``, ``FileError``."""
    write_text(out, _templates().get_template(template).render(values) + "\n")
    return out


@cache
def _templates() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as exc:
        raise MissingExtraError("jinja2", "plot") from exc
    found = Environment(
        loader=PackageLoader("isthmus.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"cell": in_a_cell, "num": num, "bound": bound_num, "whole": whole}
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return found


def in_a_cell(value: object) -> str:
    """Four digits of a number, a dash for what is not there, yes and no.

    >>> in_a_cell(0.123456), in_a_cell(None), in_a_cell(float("inf")), in_a_cell(True)
    ('0.1235', '–', 'not finite', 'yes')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if isfinite(value) else "not finite"
    return NONE if value is None else str(value)


def num(value: float) -> str:
    """Four significant digits; a dash for what was not measured.

    >>> num(0.00259312), num(1220.0), num(float("nan"))
    ('0.002593', '1220', '–')
    """
    if not isfinite(value):
        return NONE
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")


def bound_num(value: float) -> str:
    """Four significant digits rounded up, so that what is printed is still a bound.

    >>> num(0.00259312), bound_num(0.00259312), bound_num(0.25)
    ('0.002593', '0.002594', '0.25')
    """
    return num(upward(value)) if isfinite(value) else NONE


def whole(value: float) -> str:
    """A whole number, or a dash."""
    return f"{value:.0f}" if isfinite(value) else NONE
