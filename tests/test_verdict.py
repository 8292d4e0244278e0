"""The verdict: which level, and whether the path stays below it by a proof, by samples, or not."""

from dataclasses import replace
from math import inf, nan

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify.certificate import Certificate, SegmentCertificate
from isthmus.evaluate import Profile
from isthmus.verdict import Level
from tests.problems import Atan, two_layers


def measured(*loss, **more):
    n = len(loss)
    zeros = torch.zeros(n, dtype=torch.float64)
    t = torch.linspace(0, 1, n, dtype=torch.float64)
    return Profile(t, zeros.long(), torch.tensor(loss, dtype=torch.float64), zeros, n, **more)


def proof(*segments, ends=(0.1, 0.1), goal=0.01, **more):
    """From (claim, bound, largest sample) for each segment."""
    rows = [SegmentCertificate(i, c, b, "why", 0.0, witness=0.5, value=v) for i, (c, b, v) in enumerate(segments)]
    return Certificate(tuple(rows), ends, "float64", 0.0, goal, **more)


@pytest.mark.parametrize(
    ("losses", "bound", "below", "text"),
    [
        ((0.1, 0.105, 0.1), 0.1051, True, "yes, proved (at most 0.1051)"),
        ((0.1, 0.105, 0.1), 94.7, True, "measured (3 points per segment, at most 0.105; the bound, 94.71, does not"),
        ((0.1, 1.65, 0.1), 1.66, False, "no, rises to 1.65 (at t = 0.5)"),
        ((0.1, 1.65, 0.1), 94.7, False, "no, rises to 1.65 (at t = 0.5)"),
        ((0.1, nan, 0.1), 0.1051, False, "no, rises to a loss that is not finite (at t = 0.5)"),
        ((0.1, inf, 0.1), 0.1051, False, "no, rises to a loss that is not finite (at t = 0.5)"),
    ],
)
def test_a_proof_reaches_the_level_or_samples_decide(losses, bound, below, text):
    found = im.verdict(measured(*losses), proof(("bounded", bound, 0.1)))
    assert found.below is below
    assert text in str(found)
    assert "below 1.1 x the larger end (0.11) on the whole path: " in str(found)
    assert found.to_dict()["below"] is below


def test_a_segment_that_is_only_measured_is_not_proved():
    found = im.verdict(measured(0.1, 0.1), proof(("convex", 0.1, 0.1), ("measured", 0.1, 0.1)))
    assert (found.how, found.bound) == ("measured", None)
    assert "not proved: 1 of 2 segments is only measured" in str(found)


def test_a_certificate_alone():
    assert im.verdict(certificate=proof(("bounded", 0.105, 0.1))).how == "proved"
    assert im.verdict(certificate=proof(("bounded", 9.0, 0.3))).how == "rises"
    far = im.verdict(certificate=proof(("bounded", 94.7, 0.105)))
    assert (far.below, far.how) == (None, "unknown")
    assert str(far).endswith("not known (the measured maximum is 0.105; the bound, 94.71, does not reach the level)")
    half = im.verdict(certificate=proof(("bounded", 0.105, 0.1), ("measured", 0.102, 0.102)))
    assert half.how == "measured"
    assert im.verdict(certificate=proof(("bounded", 94.7, 0.1), ("measured", 0.1, 0.1))).how == "unknown"
    assert im.verdict(certificate=proof(("measured", 0.12, 0.12))).how == "rises"


def test_the_larger_of_both_samples_decides():
    found = im.verdict(measured(0.1, 0.1, 0.1), proof(("bounded", 0.3, 0.2)))
    assert (found.below, found.highest, found.at) == (False, 0.2, 0.5)


def test_a_sample_above_a_proved_bound_is_said():
    found = im.verdict(measured(0.1, 0.2, 0.1), proof(("bounded", 0.1001, 0.1)))
    assert found.below is False
    assert "though at most 0.1001 is proved: rounding in the precision of the profile, or an error" in str(found)


def test_ends_with_loss_zero_have_a_level_and_it_is_stated():
    flat = im.verdict(measured(0.0, 0.0, 0.0), proof(("bounded", 1e-10, 0.0), ends=(0.0, 0.0)))
    assert (flat.how, flat.level) == ("proved", 1e-9)
    assert "below 1.1 x the larger end, at least 1e-09 above it (1e-09) on the whole path: yes" in str(flat)
    assert im.verdict(measured(0.0, 1e-8, 0.0)).below is False
    assert im.verdict(measured(1e-7, 1.05e-7, 1e-7)).below is True


def test_negative_losses_have_a_level_above_their_ends():
    assert im.verdict(measured(-2.0, -2.0, -2.1)).level == pytest.approx(-1.8)
    assert im.verdict(measured(-2.0, -1.85, -2.1)).below is True
    assert im.verdict(measured(-2.0, -1.75, -2.1)).below is False


def test_an_end_that_is_not_a_number_is_no():
    for losses in ((nan, 0.1, 0.1), (0.1, 0.1, nan), (inf, 0.1, 0.1), (-inf, -inf, -inf)):
        for level in ("1.1x", 0.5):
            expected = losses[0] == -inf and level == 0.5
            assert im.verdict(measured(*losses), level=level).below is expected


def test_the_level_is_an_option():
    p = measured(0.1, 0.3, 0.2)
    assert [im.verdict(p, level=v).below for v in (0.3, 0.30001, "0.4", "1.4x", "1.51x", " 2X ")] == [
        False, True, True, False, True, True,
    ]  # fmt: skip
    assert str(im.verdict(p, level=0.4)).startswith("below 0.4 on the whole path: yes, measured")
    for asked in (0.4, "1.5x"):  # as stored, it is read again
        assert Level.read(im.verdict(p, level=asked).asked) == Level.read(asked)
    for wrong in ("0.9x", "x", "", "1.1 times", nan, inf, "nanx", None, [1]):
        with pytest.raises(im.InputError, match=r"level: expected a loss such as 0\.3, or a multiple >= 1"):
            im.verdict(p, level=wrong)  # type: ignore[arg-type]
    with pytest.raises(im.InputError, match="neither"):
        im.verdict()


def test_test_data_stand_beside_with_a_level_of_their_own():
    found = im.verdict(measured(0.1, 0.1, 0.1, test=measured(0.5, 0.9, 0.5)), proof(("convex", 0.1, 0.1)))
    assert found.how == "proved"
    assert found.test is not None
    assert (found.test.below, found.test.level) == (False, pytest.approx(0.55))
    question = "test data: below 1.1 x the larger end (0.55) on the whole path"
    assert found.lines[1] == f"{question}: no, rises to 0.9 (at t = 0.5)"
    assert found.to_dict()["test"]["below"] is False


def test_an_estimate_between_the_samples_is_said():
    found = im.verdict(replace(measured(0.1, 0.1, 0.1), tol=0.05, within=0.03))
    assert "3 points, chosen to within 0.05, at most 0.1; estimated to rise to 0.13 between them" in str(found)
    assert "estimated" not in str(im.verdict(replace(measured(0.1, 0.1, 0.1), tol=0.05, within=0.005)))


def test_a_proof_is_of_interpolated_statistics():
    for policy in ("keep", "recompute"):
        own = measured(0.1, 0.2, 0.1, bn=policy)
        found = im.verdict(own, proof(("convex", 0.1, 0.1)))
        assert (found.how, found.bound) == ("rises", None)
        assert found.interpolated is not None
        assert (found.interpolated.how, found.interpolated.bound) == ("proved", 0.1)
        assert found.lines[1] == f"with interpolated statistics: {found.interpolated}"
        assert found.to_dict()["interpolated"]["below"] is True
        beside = replace(own, beside={"interpolate": measured(0.1, 0.3, 0.1, bn="interpolate")})
        assert im.verdict(beside).interpolated == im.verdict(beside.beside["interpolate"])
        assert im.verdict(own).interpolated is None
    assert im.verdict(measured(0.1, 0.1, bn="interpolate"), proof(("convex", 0.1, 0.1))).how == "proved"


def test_a_line_between_unrelated_networks_and_a_segment_that_does_not_move():
    p = two_layers()
    line = im.connect(p.objective, p.a, p.b)
    assert line.outcome is im.Outcome.CONSTRUCTED
    assert "connected" not in str(line.outcome)
    found = im.verdict(im.profile(p.objective, line.path), im.certify(p.objective, line.path), level="1x")
    top = max(p.objective.loss(line.path.at(k / 200)) for k in range(201))
    assert found.below is (top < found.level)
    assert found.level == pytest.approx(max(p.objective.loss(p.a), p.objective.loss(p.b)))
    still = im.Path.through([p.a, p.a])
    assert im.verdict(certificate=im.certify(p.objective, still), level="1x").how == "proved"


def test_a_network_without_a_proof_is_measured():
    p = two_layers()
    objective = im.Objective(nn.Sequential(nn.Linear(5, 9), Atan(), nn.Linear(9, 4)).double(), data=p.objective.data)
    path = im.Path.through([p.a, p.a, p.b])
    found = im.verdict(im.profile(objective, path, 5), im.certify(objective, path), level=100.0)
    assert (found.below, found.how) == (True, "measured")
    assert "5 points per segment" in str(found)
