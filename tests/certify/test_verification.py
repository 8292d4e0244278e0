"""Stored certificates: they hold after storage, and whatever was tampered with is found and named."""

import copy
import json

import pytest
import torch

import isthmus as im
from isthmus.certify import verify_certificate
from tests.certify.cases import CASES
from tests.problems import two_layers


@pytest.fixture(scope="module")
def stored():
    problem = two_layers()
    last = dict(problem.b) | {"2.bias": problem.b["2.bias"] + torch.arange(4)}
    path = im.Path(
        (im.Curve((problem.a, problem.b)), im.Curve((problem.b, last)), im.Curve((last, problem.a, problem.b)))
    )
    c = im.certify(problem.objective, path, 0.05, labels=["x", "y", "z"])
    assert [s.claim for s in c.segments] == ["bounded", "convex", "bounded"]
    return problem, path, json.loads(json.dumps(c.to_dict()))


def check(stored, change=lambda c: None, **options):
    problem, path, certificate = stored
    certificate = copy.deepcopy(certificate)
    change(certificate)
    return verify_certificate(problem.objective, path, certificate, **options)


def test_a_certificate_holds_after_storage(stored):
    assert check(stored) == []
    assert check(stored, labels=["x", "y", "z"]) == []
    assert check(stored, labels=["x", "q", "z"]) == ["segment 1: labelled 'y', but the path says 'q'"]


def lower(c, i, factor=0.9):
    """A lower bound for one segment, consistently: only the mathematics can object."""
    s = c["segments"][i]
    s["bound"] *= factor
    s["intervals"] = [[p, q, min(b, s["bound"])] for p, q, b in s["intervals"]]
    s["gap"] = (s["bound"] - s["value"]) / s["value"]


def whole(*keys, value):
    def change(c):
        for k in keys[:-1]:
            c = c[k]
        c[keys[-1]] = value(c[keys[-1]]) if callable(value) else value

    return change


def at(*keys, value):
    return whole("segments", *keys, value=value)


TAMPERED = {
    "bounded claimed convex": (
        at(0, "claim", value="convex"),
        "segment 0: claimed 'convex', but the control points give",
    ),
    "bounded claimed unchanged": (at(2, "claim", value="unchanged"), "segment 2: claimed 'unchanged'"),
    "convex claimed unchanged": (at(1, "claim", value="unchanged"), "segment 1: claimed 'unchanged', but"),
    "unknown claim": (at(1, "claim", value="obvious"), "segment 1: the claim 'obvious' is not known"),
    "lower bound, bounded": (lambda c: lower(c, 0), "segment 0: on the sub-interval"),
    "slightly lower bound": (lambda c: lower(c, 2, 0.999999), "segment 2: on the sub-interval"),
    "lower bound, convex": (lambda c: lower(c, 1, 0.99), "segment 1: the bound"),
    "one interval lower": (at(0, "intervals", 3, 2, value=lambda b: b * 0.99), "segment 0: on the sub-interval"),
    "one interval higher": (at(0, "intervals", 3, 2, value=1e9), "above the segment's"),
    "interval missing": (
        at(0, "intervals", value=lambda v: v[:2] + v[3:]),
        "segment 0: the sub-intervals leave out t from",
    ),
    "last interval missing": (at(2, "intervals", value=lambda v: v[:-1]), "to 1"),
    "no intervals": (at(2, "intervals", value=[]), "segment 2: the sub-intervals leave out t from 0.0 to 1"),
    "whole bound": (whole("bound", value=0.5), "bound: stored 0.5"),
    "excess": (whole("excess", value=0.0), "excess: stored 0.0"),
    "gap": (whole("gap", value=0.0), "gap: stored 0.0"),
    "ends": (whole("ends", 0, value=0.1), "ends: stored [0.1"),
    "witness value": (at(0, "value", value=lambda v: v * 1.01), "segment 0: the loss at its witness"),
    "witness": (whole("witness", "loss", value=1.0), "witness: stored {"),
    "witness's place": (whole("witness", "t", value=0.123), "witness: stored {"),
    "witness before the start": (at(0, "witness", value=-1e-6), "the witness t = -1e-06 is not in [0, 1]"),
    "witness behind the end": (at(2, "witness", value=1.5), "the witness t = 1.5 is not in [0, 1]"),
    "close": (whole("close", value=lambda v: not v), "close: stored"),
    "words": (whole("summary", value="proved: at most 0.001"), "summary: stored proved: at most 0.001"),
    "expected": (whole("expected", value=7), "expected: stored 7"),
    "evaluations": (whole("evaluations", value=3), "evaluations: stored 3, but there are"),
    "budget": (whole("budget", value=-1), "the search: expected finite numbers >= 0"),
    "why, exact": (at(1, "why", value="it is so"), "segment 1: why: stored 'it is so'"),
    "why, bounded": (at(0, "why", value="it is so"), "segment 0: why: stored 'it is so'"),
    "no total": (lambda c: c.pop("bound"), "the certificate is malformed: it does not say ['bound']"),
    "error": (at(0, "error_bound", value=0.0), "segment 0: the error rate"),
    "error, exact": (at(1, "error_bound", value=0.0), "segment 1: the error rate"),
    "total error": (whole("error_bound", value=0.0), "error_bound: stored 0.0"),
    "proved": (whole("proved", value=False), "proved: stored False"),
    "counts": (whole("counts", value={"convex": 3}), "counts: stored"),
    "deviation": (at(1, "deviation", value=0.0), "segment 1: the deviation is"),
    "segments": (whole("segments", value=lambda v: v[:2]), "segments: 2 are stored; the path has 3"),
    "not a number": (at(0, "bound", value=float("nan")), "segment 0: the bound nan is not a number"),
    "format": (whole("format", value=2), "format and dtype: 2"),
    "key missing": (lambda c: c.pop("segments"), "the certificate is malformed: KeyError: 'segments'"),
    "type": (at(0, "bound", value="low"), "the certificate is malformed: TypeError"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_found_and_named(stored, name):
    change, message = TAMPERED[name]
    problems = check(stored, change)
    assert any(message in p for p in problems), problems


def test_a_certificate_of_another_path_is_refused(stored):
    problem, path, certificate = stored
    for i in (0, 2):
        knots = [copy.copy(p) for p in path.segments[i].control]
        knots[-1] = {k: v * 1.05 for k, v in knots[-1].items()}
        segments = list(path.segments)
        segments[i] = im.Curve(tuple(knots))
        if i == 0:
            last = segments[1].control[1]
            segments[1] = im.Curve((knots[-1], last))
        assert verify_certificate(problem.objective, im.Path(tuple(segments)), certificate)
    assert verify_certificate(problem.objective, path.reversed(), certificate)
    assert verify_certificate(problem.objective.subset(11), path, certificate)


def test_samples_above_a_bound_are_reported(stored):
    """Even a bound that no sub-interval contradicts is compared with dense samples."""

    def change(c):
        for s in c["segments"]:
            s["claim"], s["intervals"] = "measured", []
        c["segments"][0]["error_bound"] = 0.0

    problems = check(stored, change)
    assert any("the error rate at t =" in p for p in problems)


@pytest.mark.parametrize("name", ["convolutions", "residual", "tokens", "gated"])
def test_networks_of_all_kinds_are_certified_and_verified(name):
    case = next(c for c in CASES if c.name == name)
    objective = case.objective()
    path = im.Path.through([{k: v * 0.5 for k, v in p.items()} if name == "tokens" else p for p in case.control(2)])
    c = im.certify(objective, path, 0.05, budget=1500)
    assert c.proved
    assert c.gap <= 0.05
    assert verify_certificate(objective, path, c.to_dict()) == []


def test_an_operation_without_a_rule_makes_a_claim_a_problem_and_no_error():
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    odd = torch.nn.Sequential(module[0], Arctan(), module[2])
    path = im.Path.through([{k: v * f for k, v in module.state_dict().items()} for f in (1.0, 2.0)])
    stored = im.certify(im.Objective(module, data=(x, y)), path).to_dict()
    problems = verify_certificate(im.Objective(odd, data=(x, y)), path, stored)
    assert any("claimed 'bounded', but nothing of it can be derived: atan" in p for p in problems), problems


class Arctan(torch.nn.Module):
    def forward(self, x):
        return torch.atan(x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (whole("model", value="ball"), "model: 'ball' is not known"),
        (at(0, "witness", value=1.5), "segment 0: the witness t = 1.5 is not in [0, 1]"),
        (whole("remark", value="it holds"), "entries that no certificate has: ['remark']"),
    ],
)
def test_what_no_certificate_says_is_named(stored, change, words):
    assert words in " | ".join(check(stored, change))
