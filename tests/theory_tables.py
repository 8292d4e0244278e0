"""The table of a pair of networks, its rows, and the path that reaches its bound."""

import pytest
import torch

import isthmus as im
from isthmus.theory import Row, Theory
from isthmus.theory.table import CONCLUSION
from tests.problems import Problem

F64 = torch.float64


def table(problem: Problem, *theorems: str) -> Theory:
    return im.theory(problem.objective, problem.a, problem.b, theorems=theorems)


def one(found: Theory, theorem: str, premise: str, end: str = "") -> Row:
    (row,) = [r for r in found.of(theorem) if r.premise.startswith(premise) and r.end == end]
    return row


def failing(found: Theory) -> list[str]:
    return [r.premise for r in found.rows if r.holds is False]


def conclusion(found: Theory, theorem: str) -> Row:
    return one(found, theorem, CONCLUSION)


def top(problem: Problem) -> float:
    return max(problem.objective.loss(problem.a), problem.objective.loss(problem.b))


def numbers(n: int, widths: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, widths[0], generator=g, dtype=F64), torch.randn(n, widths[-1], generator=g, dtype=F64)


def reaches(problem: Problem, method: im.Connector, bound: float | None, rel: float = 1e-9) -> None:
    """The path of the connector is proved to be at most the bound, which its ends or the halves reach."""
    assert bound is not None
    connection = im.connect(problem.objective, problem.a, problem.b, method)
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved
    assert certificate.bound == pytest.approx(bound, rel=rel)
    assert im.profile(problem.objective, connection.path, 11).max <= bound * (1 + 1e-6)
