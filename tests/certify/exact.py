"""The claims that need no bound of an interval, and one weight that is another one."""

import isthmus as im
from tests.problems import Problem


def exact(objective: im.Objective, path: im.Path, **options) -> im.Certificate:
    """The exact claims alone: where there is none, the segment is measured, not bounded numerically."""
    return im.certify(objective, path, budget=0, **options)


def kinds(problem: Problem, path: im.Path) -> list[str]:
    return [s.claim for s in exact(problem.objective, path).segments]


def change(params, name, index, by=0.1):
    out = dict(params)
    out[name] = out[name].clone()
    out[name][index] += by
    return out
