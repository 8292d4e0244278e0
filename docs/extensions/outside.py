"""Links of the pages that lead out of docs/: into the repository, or to a page of the site that shows that file.

The pages are read on a code host too, where ``../src/isthmus/api.py`` works as it stands.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
SHOWN = {"CHANGELOG.md": "changelog", "README.md": "index"}
"""Files beside docs/ that a page of the site shows."""
_LINK = re.compile(r"(?<!!)\[([^\]\[]*)\]\(((?!https?:|mailto:|#)[^)\s]+)\)")


def inside(text: str, page: str, repository: str) -> str:
    """The Markdown of a page with the links that the site can follow.

    >>> inside("[a](../benchmarks/auto.py), [b](../CHANGELOG.md), [c](verdict.md)", "graph", "")
    'a (`benchmarks/auto.py`), [b](changelog.md), [c](verdict.md)'
    >>> inside("[a](../benchmarks/auto.py)", "graph", "https://host/it")
    '[a](https://host/it/blob/main/benchmarks/auto.py)'
    """
    folder = (HERE / page).parent

    def moved(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        file = (folder / target).resolve()
        if file.is_relative_to(HERE) or not file.is_relative_to(HERE.parent):
            return match[0]
        there = file.relative_to(HERE.parent).as_posix()
        if there in SHOWN:
            up = "../" * page.count("/")
            return f"[{match[1]}]({up}{SHOWN[there]}.md)"
        if not repository:
            return match[1] if "`" in match[1] or there in match[1] else f"{match[1]} (`{there}`)"
        return f"[{match[1]}]({repository}/blob/main/{there}{'#' + anchor if anchor else ''})"

    return _LINK.sub(moved, text)


def setup(app: Any) -> dict[str, bool]:
    """Rewrite the links as pages are read; names of the API get theirs."""
    from api_names import public

    pages = {one.name: one.page for one in public()}

    def named(match: re.Match[str], up: str) -> str:
        name = re.match(r"im\.((?:models\.|data\.|counterexamples\.)?\w+)", match[1])
        page = pages.get(name[1]) if name else None
        return match[0] if page is None else f"[`{match[1]}`]({up}api/{page}.md)"

    def read(app: Any, page: str, source: list[str]) -> None:
        if page.startswith("gallery/"):
            return
        text = inside(source[0], page, app.config.repository_url)
        up = "../" * page.count("/")
        source[0] = (
            text
            if page.startswith("api/")
            else re.sub(r"(?<![\[`])`(im\.[^`\n]+)`(?![`\]])", lambda m: named(m, up), text)
        )

    app.add_config_value("repository_url", "", "env")
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
