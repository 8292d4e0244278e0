"""Chains whose units are dropped, and all searches."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from isthmus.models import vgg11
from isthmus.stability.dropout.subsets import SEARCHES
from tests.problems import Problem, classify, perceptron, small_convnet

searches = pytest.mark.parametrize("search", SEARCHES)


def small_vgg() -> Problem:
    return classify("vgg", vgg11(width=2, classes=4).double(), (3, 32, 32))


CHAINS: dict[str, Callable[[], Problem]] = {
    "perceptron": lambda: classify("p", perceptron([5, 9, 7, 8, 4]), (5,)),
    "without bias": lambda: classify("b", perceptron([5, 9, 7, 8, 4], bias=False), (5,)),
    "convnet": lambda: classify("c", small_convnet(), (1, 8, 8)),
}
