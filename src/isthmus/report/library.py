"""The script of plotly, as a page holds it."""

from __future__ import annotations

from isthmus.errors import MissingExtraError


def plotly() -> str:
    """Its text. Errors: ``MissingExtraError``."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as exc:
        raise MissingExtraError("plotly", "plot") from exc
    return get_plotlyjs()
