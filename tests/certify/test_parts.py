"""Products of exactly known numbers, computed in parts: what they allow for rounding against rational arithmetic."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from isthmus.certify.arithmetic import contract
from isthmus.certify.forms import HEADROOM, UNIT, Form


def numbers(rows: int, terms: int, kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(terms)
    v = torch.randn(rows, terms, generator=g, dtype=torch.float64)
    if kind == "spread":  # over eleven powers of ten, in a random order
        return v * torch.logspace(-8, 3, terms, dtype=torch.float64)[torch.randperm(terms, generator=g)]
    if kind == "cancelling":  # almost nothing is left of the sums
        return torch.cat([v, -v[:, : terms // 2] * (1 + 1e-12)], 1)[:, :terms] + 7.0
    return v * {"plain": 1.0, "large": 2.0**300, "small": 2.0**-300, "huge": 2.0**900, "tiny": 2.0**-1060}[kind]


def exact(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> list[list[Fraction]]:
    offsets = [Fraction(0)] * len(w) if b is None else [Fraction(float(v)) for v in b]
    return [
        [
            sum((Fraction(float(p)) * Fraction(float(q)) for p, q in zip(row, column, strict=True)), offset)
            for column, offset in zip(w, offsets, strict=True)
        ]
        for row in x
    ]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("terms", [1, 7, 785])
@pytest.mark.parametrize("kind", ["plain", "spread", "cancelling", "large", "small", "huge", "tiny"])
def test_a_product_in_parts_encloses_the_exact_one_with_its_headroom(kind, terms, bias):
    x, w = numbers(3, terms, kind), numbers(5, terms, "plain")[:4]
    b = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) if bias else None
    form = contract(F.linear, terms, Form(x), Form(w), None if b is None else Form(b), 1)
    assert form.ulps <= HEADROOM / 2
    assert form.radius is not None
    for found, radius, wanted in zip(form.centre, form.radius, exact(x, w, b), strict=True):
        for z, r, true in zip(found, radius, wanted, strict=True):
            room = Fraction(float(r)) - 8 * Fraction(UNIT) * (abs(Fraction(float(z))) + Fraction(float(r)))
            assert abs(true - Fraction(float(z))) <= room + Fraction(2) ** -1066


def test_the_parts_leave_a_few_ulps_of_the_result_where_sums_are_long():
    x, w = numbers(20, 785, "plain"), numbers(30, 785, "plain")
    parts, whole = (contract(F.linear, 785, Form(x), Form(w), None, axis).radius for axis in (1, None))
    assert parts is not None
    assert whole is not None
    assert float((whole / parts).median()) > 40
    typical = (x @ w.T).abs().median()
    assert float(parts.median()) < 100 * UNIT * float(typical)


@pytest.mark.parametrize("kind", ["huge", "tiny", "zero", "moving", "off"])
def test_other_numbers_take_the_usual_way(kind):
    x, w = numbers(3, 50, "plain"), numbers(2, 50, "plain")
    x = torch.zeros_like(x) if kind == "zero" else numbers(3, 50, kind) if kind in ("huge", "tiny") else x
    weight = Form(w, w * 0.1 if kind == "moving" else None, w.abs() * 1e-9 if kind == "off" else None)
    one, other = (contract(F.linear, 50, Form(x), weight, None, axis) for axis in (1, None))
    assert torch.equal(one.centre, other.centre)
    assert torch.equal(one.radius, other.radius)  # type: ignore[arg-type]


def test_what_is_not_finite_stays_so():
    x, w = numbers(2, 9, "plain"), numbers(2, 9, "plain")
    x[0, 3] = float("nan")
    form = contract(F.linear, 9, Form(x), Form(w), None, 1)
    assert form.centre[0].isnan().all()
    assert form.centre[1].isfinite().all()
