"""Figures of dropout and noise stability: what is drawn is what was given."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.plot import save_figure
from isthmus.plot.stability import QUANTITIES, dropout_figure, noise_histograms, noise_values
from tests.problems import classify, perceptron


@pytest.fixture(scope="module")
def problem():
    return classify("plots", perceptron([5, 12, 10, 8, 4]), (5,))


def stored(problem: Any, **options: Any) -> dict[str, Any]:
    """What a file holds: numbers that are not finite as null."""
    s = im.dropout_stability(problem.objective, problem.a, masks=9, **options)
    text = json.dumps(s.to_dict()).replace("NaN", "null").replace("Infinity", "null")
    return json.loads(text)


def named(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines()}


def heights(axes: Any) -> list[float]:
    """Of the bars."""
    return [bar.get_height() for bar in axes.patches]


def test_dropout_figure_holds_the_numbers(problem):
    s = stored(problem)
    left, right = dropout_figure(s).axes
    lines = named(left)
    assert list(lines["after dropping, training set"].get_ydata()) == [v["loss"] for v in s["layers"]]
    assert list(lines["after dropping, training set"].get_xdata()) == [1, 2, 3]
    assert lines["whole network, training set"].get_ydata()[0] == s["loss"]
    assert "after dropping, test set" not in lines
    curves = named(right)
    for layer in s["layers"]:
        curve = curves[f"entry layer {layer['entry']}"]
        assert np.asarray(curve.get_ydata()).tolist() == list(accumulate(layer["trace"], min))
    dashed = [line for line in right.get_lines() if line.is_dashed() and np.size(line.get_xdata()) > 2]
    assert [np.asarray(line.get_ydata()).tolist() for line in dashed] == [v["expected"] for v in s["layers"]]
    assert left.get_xlabel()
    assert left.get_ylabel() == "loss"


def test_dropout_figure_with_test_data_and_work_spent_on_gradients(problem, tmp_path: File):
    x, y = problem.objective.data
    s = stored(problem, search="gates", test=problem.objective.on((x[:9], y[:9])))
    figure = dropout_figure(s)
    lines = named(figure.axes[0])
    assert list(lines["after dropping, test set"].get_ydata()) == [v["test_loss"] for v in s["layers"]]
    assert lines["whole network, test set"].get_ydata()[0] == s["test_loss"]
    assert not any(line.is_dashed() for line in figure.axes[1].get_lines())
    first = named(figure.axes[1])["entry layer 1"].get_ydata()
    assert np.nanmin(first) == s["layers"][0]["loss"]
    for kind in ("svg", "png"):
        files = [save_figure(dropout_figure(s), tmp_path / f"{k}.{kind}").read_bytes() for k in range(2)]
        assert files[0] == files[1]


def test_zeros_and_tiny_losses_stand_at_the_bottom(problem):
    s = stored(problem)
    s["layers"][2] |= {"loss": 0.0, "trace": [2.0, None, 1e-3, 0.0], "expected": []}
    s["layers"][1] |= {"loss": 1e-14}
    left, right = dropout_figure(s).axes
    assert left.get_yscale() == right.get_yscale() == "symlog"
    assert left.get_ylim()[0] == 0
    with pytest.raises(im.InputError, match="entry layer"):
        dropout_figure(s | {"layers": []})


def test_noise_histograms_count_every_example(problem):
    noise = im.noise_stability(problem.objective, problem.a, draws=4)
    values = noise_values(noise)
    assert set(values) == set(QUANTITIES)
    for i in (1, 2, 3):
        pairs = torch.stack([noise.interlayer_cushion[i, j] for j in range(i + 1, 5)])
        assert np.array_equal(values["interlayer_cushion"][i], pairs.min(0).values.numpy())
    assert list(values["interlayer_smoothness"]) == [2, 3]
    assert list(values["layer_cushion"]) == [1, 2, 3, 4]
    for quantity in QUANTITIES:
        figure = noise_histograms(values, quantity)
        assert len(figure.axes) == len(values[quantity])
        for axes, (layer, numbers) in zip(figure.axes, values[quantity].items(), strict=True):
            assert axes.get_title() == f"layer {layer}"
            assert sum(heights(axes)) == len(numbers) == 24
            assert axes.get_xscale() == "linear"
    with pytest.raises(im.InputError, match="layer_cushion"):
        noise_histograms(values, "cushion")


def test_infinite_numbers_are_counted_in_the_title():
    (axes,) = noise_histograms({"layer_cushion": {1: [1.0, float("inf"), 1.0]}}, "layer_cushion").axes
    assert axes.get_title() == "layer 1 (1 infinite)"
    assert sum(heights(axes)) == 2
