"""The pages in a real browser, where there is one: quiet, alone, and all their switches do something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.report import write_report, write_string_page
from isthmus.report.check import write_check_files
from isthmus.report.graph import write_graph_page
from isthmus.report.surfaces import write_plane_page
from isthmus.storage.files import write_json
from tests.report.browser import CHROMIUM, Browser, browser
from tests.report.fabricate import make_runs

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)

PAGES = ("report", "check", "graph", "plane", "string")
SEEN = "(e) => e.checkVisibility({ visibilityProperty: true })"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    report = write_report(make_runs(folder / "report", 3))
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    objective = im.Objective(module, data=(x, y))
    a, b, c = ends = [{k: torch.randn_like(v) for k, v in module.state_dict().items()} for _ in range(3)]
    check = im.check(objective, ends, test=objective, align=True)
    (folder / "check").mkdir()
    write_json(folder / "check/check.json", check.to_dict())
    write_check_files(folder / "check/check.json")
    graph = im.minima_graph(objective, ends, im.Linear(), folder=folder / "graph")
    (folder / "graph").mkdir(exist_ok=True)
    write_graph_page(graph, folder / "graph")
    from isthmus.plot import strings
    from isthmus.plot.surface import Surface

    write_plane_page(
        Surface.of(im.plane(objective, a, b, c, test=objective, points=9).to_dict()), folder / "plane.html"
    )
    write_string_page(strings(objective, im.connect(objective, a, b), num_points=9), folder / "string.html")
    return {
        "report": report, "check": folder / "check/report.html", "graph": folder / "graph/report.html",
        "plane": folder / "plane.html", "string": folder / "string.html",
    }  # fmt: skip


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_quiet_and_alone(page: str, pages: dict[str, Path], tab: Browser):
    tab.open(pages[page])
    assert tab.said == []
    assert [url for url in tab.asked if not url.startswith(("data:", "blob:"))] == [pages[page].as_uri()]
    assert tab.value("document.documentElement.lang") == "en"
    assert tab.value("document.title") != ""
    # what plotly draws has names of its own making
    ids = tab.value("[...document.querySelectorAll('[id]')].filter((e) => !e.closest('.main-svg')).map((e) => e.id)")
    assert [name for name, n in Counter(ids).items() if n > 1] == []
    links = tab.value("[...document.querySelectorAll('main a')].map((a) => a.getAttribute('href'))")
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert tab.value("[...document.querySelectorAll('table')].every((t) => t.caption && t.caption.textContent)")
    assert tab.value("[...document.querySelectorAll('main th')].every((t) => t.scope)")
    pictures = "[...document.querySelectorAll('.still')].map((e) => e.getAttribute('aria-label'))"
    assert all(tab.value(pictures))


def figure(tab: Browser) -> Any:
    """What plotly draws, as pictures have it: a switch that changes none of it does nothing."""
    return tab.value("[...document.querySelectorAll('.figure .main-svg')].map((e) => e.innerHTML).join()")


@pytest.mark.parametrize("page", ["report", "plane"])
def test_every_switch_changes_what_is_shown(page: str, pages: dict[str, Path], tab: Browser):
    tab.open(pages[page])
    count = tab.value("document.querySelectorAll('.controls input').length")
    assert count >= 4
    for k in range(count):
        switch = f"document.querySelectorAll('.controls input')[{k}]"
        if tab.value(f"{switch}.type === 'radio' && {switch}.checked"):
            continue
        before = figure(tab)
        tab.value(f"{switch}.click()")
        tab.wait()
        assert figure(tab) != before, tab.value(f"{switch}.outerHTML")
    assert tab.said == []


def test_details_and_links_open(pages: dict[str, Path], tab: Browser):
    tab.open(pages["report"])
    shown = f"[...document.querySelectorAll('.segments tr')].filter({SEEN}).length"
    assert tab.value(shown) == 0
    tab.value("document.querySelectorAll('summary').forEach((e) => e.click())")
    assert tab.value(shown) > 0
    tab.value("document.querySelector('tbody a').click()")
    assert tab.value("location.hash") == "#run-1"


def test_a_string_can_be_turned(pages: dict[str, Path], tab: Browser):
    tab.open(pages["string"])
    picture = "document.getElementById('view').toDataURL()"
    before = tab.value(picture)
    tab.value("document.getElementById('turn').click()")
    tab.wait()
    assert tab.value(picture) != before


@pytest.mark.parametrize("page", PAGES)
def test_dark_narrow_and_without_scripts(page: str, pages: dict[str, Path], tab: Browser):
    ground = "getComputedStyle(document.body).backgroundColor"
    stills = f"[...document.querySelectorAll('.still')].filter({SEEN}).length"
    tab.open(pages[page])
    light = tab.value(ground)
    tab.dark(True)
    tab.open(pages[page])
    assert tab.value(ground) != light
    tab.dark(False)
    tab.open(pages[page], width=390)
    # tables scroll in their sections, and the page itself not to the side
    assert tab.value("document.documentElement.scrollWidth") <= 390
    try:
        tab.scripts(False)
        tab.open(pages[page])
        assert tab.value(stills) == tab.value("document.querySelectorAll('.still').length") > 0
    finally:
        tab.scripts(True)


@pytest.mark.parametrize("page", PAGES)
def test_on_paper_the_pictures_stand_still(page: str, pages: dict[str, Path], tab: Browser):
    tab.open(pages[page])
    tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        hidden = f"[...document.querySelectorAll('.figure, .controls, #app')].filter({SEEN}).length"
        shown = f"[...document.querySelectorAll('.still')].every({SEEN})"
        assert tab.value(hidden) == 0
        assert tab.value(shown)
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")
    assert tab.pdf().startswith(b"%PDF-")
