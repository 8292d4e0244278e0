import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import isthmus as im
from isthmus import params as P

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def point(values: list[float]) -> im.Params:
    return {"w": torch.tensor(values, dtype=torch.float64), "n": torch.tensor(3)}


@given(st.lists(numbers, min_size=1, max_size=5), st.lists(numbers, min_size=5, max_size=5), st.floats(0, 1))
def test_lerp_is_exact_at_the_ends_and_between(a, b, t):
    p, q = point(a), point(b[: len(a)])
    assert P.lerp(p, q, 0)["w"] is p["w"]
    assert P.lerp(p, q, 1)["w"] is q["w"]
    want = (1 - t) * p["w"] + t * q["w"]
    torch.testing.assert_close(P.lerp(p, q, t)["w"], want, rtol=1e-12, atol=1e-6)


def test_integer_tensors_step_at_the_end():
    p, q = {"n": torch.tensor(3)}, {"n": torch.tensor(7)}
    assert int(P.lerp(p, q, 0.99)["n"]) == 3
    assert int(P.lerp(p, q, 1)["n"]) == 7


def test_distance_norm_and_dot_agree():
    p, q = point([1.0, 2.0]), point([4.0, -2.0])
    assert P.distance(p, q) == 5.0
    assert P.distance(p, q) ** 2 == pytest.approx(P.dot(p, p) + P.dot(q, q) - 2 * P.dot(p, q))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(2)}, "only the keys w, got also v"),
        ({"w": torch.zeros(3)}, r"expected shape \(2,\), got \(3,\)"),
        ({"w": torch.zeros(2, dtype=torch.float64)}, "expected torch.float32, got torch.float64"),
        ({"w": torch.zeros(1, 2)}, r"expected shape \(2,\), got \(1, 2\)"),
        ({"w": 3.0}, "expected a torch.Tensor, got float"),
        ({"w": torch.zeros(2, device="meta")}, "expected device cpu, got meta"),
    ],
)
def test_check_like_names_what_differs(change, message):
    with pytest.raises(im.InputError, match=message):
        P.check_like({"w": torch.zeros(2)} | change, {"w": torch.zeros(2)})


def test_check_like_names_a_missing_key():
    with pytest.raises(im.InputError, match="expected the key"):
        P.check_like({}, {"w": torch.zeros(2)})


def test_share_keeps_one_copy_of_equal_tensors():
    p = {"w": torch.ones(2), "b": torch.zeros(1)}
    shared = P.share({"w": torch.ones(2), "b": torch.ones(1)}, p)
    assert shared["w"] is p["w"]
    assert shared["b"] is not p["b"]


def test_stack_adds_an_axis_and_refuses_unlike_dictionaries():
    assert P.stack([point([1.0]), point([2.0])])["w"].tolist() == [[1.0], [2.0]]
    with pytest.raises(im.InputError, match="shape"):
        P.stack([point([1.0]), point([2.0, 3.0])])
