"""HTML pages that stand alone: they fetch nothing."""

from __future__ import annotations

import json
from typing import Any

# nothing may be fetched, submitted or framed; blob: is how the figures hand their picture to "save as"
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


def html_page(title: str, css: str, main: str, scripts: str = "") -> str:
    """The page; all but `css` must be escaped already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{css}</style>\n</head>\n<body>\n<main>\n{main}\n</main>\n"
        f"{scripts}\n</body>\n</html>\n"
    )


def data_and_script(data: Any, script: str) -> str:
    """A script, and what it finds in the element ``data``."""
    return f'<script type="application/json" id="data">{_in_script(data)}</script>\n<script>{script}</script>'


def _in_script(value: Any) -> str:
    """JSON for a script element: no character that HTML could take for markup.

    >>> _in_script("</script>&")
    '"\\\\u003c/script\\\\u003e\\\\u0026"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
