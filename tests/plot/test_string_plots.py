"""Strings in three directions: what is drawn is what was measured, and the page needs nothing from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path as File

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.params import distance
from isthmus.paths import Curve, Path
from isthmus.plot import draw_frames, draw_string, save_figure, strings
from isthmus.plot.string import Strings
from isthmus.report import write_string_page
from tests.connectors.strings.strings import LEVEL, quadratic, quick


@pytest.fixture(scope="module")
def found() -> tuple[im.Objective, im.Connection, Strings]:
    objective, a, b = quadratic()
    connection = im.connect(objective, a, b, quick())
    return objective, connection, strings(objective, connection, num_points=9)


def test_the_last_frame_is_the_string_and_the_first_the_straight_line(found):
    objective, connection, drawn = found
    last, first = drawn.frames[-1], drawn.frames[0]
    assert len(drawn.frames) == connection.stats["depth"] + 1
    profile = im.profile(objective, connection.path, 9)
    np.testing.assert_array_equal(last.loss, profile.loss.numpy())
    assert int(last.knots.sum()) == len(connection.path.knots)
    assert len(first.loss) == 9
    line = im.profile(objective, Path.through([connection.path.start, connection.path.end]), 9)
    np.testing.assert_array_equal(first.loss, line.loss.numpy())
    for depth, frame in enumerate(drawn.frames):
        assert int(frame.knots.sum()) == sum(born <= depth for born in connection.stats["born"])
        assert f"largest loss {frame.loss.max():.3g}" in frame.title
    assert drawn.threshold == LEVEL


def test_the_directions_are_those_of_the_largest_spread(found):
    _, connection, drawn = found
    beads = drawn.frames[-1].points[drawn.frames[-1].knots]
    weights = np.stack([np.concatenate([v.flatten().numpy() for v in p.values()]) for p in connection.path.knots])
    centred = weights - weights.mean(0)
    spread = np.linalg.svd(centred, compute_uv=False) ** 2
    np.testing.assert_allclose(drawn.variance, spread[:3] / spread.sum(), rtol=1e-9)
    np.testing.assert_allclose((beads**2).sum(0), spread[:3], rtol=1e-9)
    # distances in three directions are at most the true ones, and near them where three carry nearly all
    shown = np.linalg.norm(beads[0] - beads[-1])
    true = distance(connection.path.start, connection.path.end)
    assert 0.95 * true < shown <= true * (1 + 1e-12)
    assert beads[-1, 0] > beads[0, 0]


def test_points_between_beads_are_on_the_lines_between_them(found):
    *_, drawn = found
    frame = drawn.frames[-1]
    place = np.flatnonzero(frame.knots)
    i, j = place[1], place[2]
    expected = 0.75 * frame.points[i] + 0.25 * frame.points[j]
    np.testing.assert_allclose(frame.points[i + 2], expected, atol=1e-12)


def test_figures_are_drawn_and_equal_every_time(found, tmp_path: File):
    *_, drawn = found
    for name, draw in (("one", draw_string), ("frames", draw_frames)):
        one = save_figure(draw(drawn), tmp_path / f"{name}.png").read_bytes()
        again = save_figure(draw(drawn), tmp_path / f"{name}2.png").read_bytes()
        assert one == again
    figure = draw_frames(drawn, count=2)
    axes = figure.axes[:-1]
    assert [a.get_title() for a in axes] == [drawn.frames[0].title, drawn.frames[-1].title]
    (collection,) = [c for c in axes[1].collections if type(c).__name__ == "Line3DCollection"]
    pieces = np.array(collection._segments3d)  # type: ignore[attr-defined]
    np.testing.assert_allclose(pieces[:, 0], drawn.frames[-1].points[:-1])
    colours = collection.get_edgecolor()
    assert len(colours) == len(drawn.frames[-1].loss) - 1
    with pytest.raises(im.InputError, match="count"):
        draw_frames(drawn, count=1)


def test_high_losses_are_red_and_low_ones_blue(found):
    *_, drawn = found
    colour = lambda figure: next(
        c for c in figure.axes[0].collections if type(c).__name__ == "Line3DCollection"
    ).get_edgecolor()
    first, last = colour(draw_string(drawn, 0)), colour(draw_string(drawn, -1))
    top = int(np.argmax(drawn.frames[0].loss[:-1]))
    assert first[top][0] > first[top][2]
    assert all(c[2] > c[0] for c in last)


def test_the_page_stands_alone_and_holds_every_frame(found, tmp_path: File):
    *_, drawn = found
    file = write_string_page(drawn, tmp_path / "string.html", title="a <b> & c")
    text = file.read_text()
    assert not re.search(
        r"(src|href)\s*=|https?://(?!www\.w3\.org)|import\(|fetch\(", re.sub(r"<svg.*?</svg>", "", text, flags=re.S)
    )
    assert "a &lt;b&gt; &amp; c" in text
    assert "<b>" not in text
    assert len(text) < 1_000_000
    found_data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found_data is not None
    data = json.loads(found_data[1])
    assert [f["title"] for f in data["frames"]] == [f.title for f in drawn.frames]
    assert data["frames"][-1]["loss"] == [float(f"{v:.5g}") for v in drawn.frames[-1].loss]
    assert data["frames"][-1]["knots"] == np.flatnonzero(drawn.frames[-1].knots).tolist()
    assert max(abs(v) for f in data["frames"] for p in f["points"] for v in p) <= max(data["box"]) == 1
    assert write_string_page(drawn, tmp_path / "again.html", title="a <b> & c").read_text() == text


def test_a_string_that_is_not_connected_and_strings_without_a_history():
    example = im.counterexamples.permutation()
    method = im.StringSampling(0.03, patience=2, recipe=im.Recipe(lr=0.01, steps=300, batch=3, check=20))
    connection = im.connect(example.objective, *example.minima, method)
    drawn = strings(example.objective, connection, num_points=9)
    assert drawn.frames[-1].loss.max() > example.threshold
    assert drawn.limits[0] == pytest.approx(0.015)
    assert len(strings(example.objective, connection, num_points=9, history=False).frames) == 1
    plain = im.connect(example.objective, *example.minima)
    one = strings(example.objective, plain, num_points=9)
    assert len(one.frames) == 1
    assert one.threshold is None
    draw_string(one)
    bent = Path((Curve((plain.path.start, plain.path.end, plain.path.start)),))
    with pytest.raises(im.InputError, match="straight segments"):
        strings(example.objective, im.Connection(bent, bent.end, im.Outcome.CONSTRUCTED))


def test_a_point_path_can_be_drawn():
    example = im.counterexamples.permutation()
    a = example.minima[0]
    path = Path.through([a, {k: v.clone() for k, v in a.items()}])
    drawn = strings(example.objective, im.Connection(path, a, im.Outcome.CONSTRUCTED), num_points=3)
    assert torch.from_numpy(drawn.frames[0].points).abs().max() == 0
    draw_string(drawn)
