"""``curve.npz``: the names of dnn-mode-connectivity, and its numbers by an independent computation."""

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.paths import Curve, Path
from tests.problems import convolutional, random_params, with_ridge

CURVES = [f"{part}_{name}" for part in ("tr", "te") for name in ("loss", "nll", "err")]
KEYS = {
    "ts",
    "dl",
    "tr_acc",
    "te_acc",
    *CURVES,
    *(f"{c}_{how}" for c in CURVES for how in ("min", "max", "avg", "int")),
}
"""Those that ``eval_curve.py`` of dnn-mode-connectivity writes."""


def flat(objective, point):
    return torch.cat([point[k].flatten() for k in objective.parameter_names]).numpy()


def test_the_names_and_the_numbers_are_those_of_the_published_code(tmp_path):
    p = with_ridge()
    test = p.objective.part(slice(0, 7))
    path = Path((Curve((p.a, random_params(p.objective.skeleton, 4), p.b)),))
    profile = im.profile(p.objective, path, 9, test=test)
    im.save_curve_npz(profile, tmp_path / "curve.npz", p.objective, path)
    held = np.load(tmp_path / "curve.npz")
    assert set(held.files) == KEYS | {"l2"}
    ts = np.linspace(0, 1, 9)
    w = [flat(p.objective, path.at(float(t))) for t in ts]
    dl = np.array([0, *(np.sqrt(np.sum(np.square(v - u))) for u, v in zip(w, w[1:], strict=False))])
    l2 = np.array([np.sum(v**2) for v in w])
    want = {"ts": ts, "dl": dl, "l2": l2}
    for part, data in (("tr", p.objective), ("te", test)):
        nll = np.array([float(data.losses(path.at(float(t))).mean()) for t in ts])
        acc = 100 - 100 * np.array([data.error(path.at(float(t))) for t in ts])
        want |= {f"{part}_nll": nll, f"{part}_loss": nll + 1e-3 * l2}
        want |= {f"{part}_acc": acc, f"{part}_err": 100 - acc}
    for curve in CURVES:
        q = want[curve]
        along = sum((q[i] + q[i + 1]) / 2 * dl[i + 1] for i in range(8)) / dl.sum()
        want |= {f"{curve}_min": q.min(), f"{curve}_max": q.max(), f"{curve}_avg": q.sum() / 9, f"{curve}_int": along}
    for name in held.files:
        assert held[name] == pytest.approx(want[name], rel=1e-10, abs=1e-12), name
    assert held["tr_err_int"].shape == ()


@pytest.mark.parametrize(("own", "of_test"), [(1e-3, None), (None, 1e-2), (1e-3, 1e-2)])
def test_each_data_set_has_a_penalty_of_its_own(tmp_path, own, of_test):
    p = with_ridge()
    x, y = p.objective.data
    assert isinstance(x, torch.Tensor)
    objective, test = (
        im.Objective(p.objective.skeleton, data=(x[part], y[part]), penalty=None if k is None else im.Ridge(k))
        for k, part in ((own, slice(None)), (of_test, slice(0, 7)))
    )
    path = Path.through([p.a, p.b])
    profile = im.profile(objective, path, 3, test=test)
    im.save_curve_npz(profile, tmp_path / "curve.npz", objective, path, test)
    held = np.load(tmp_path / "curve.npz")
    for part, data, kappa in (("tr", objective, own or 0), ("te", test, of_test or 0)):
        nll = [float(data.losses(path.at(t)).mean()) for t in (0.0, 0.5, 1.0)]
        assert held[f"{part}_nll"] == pytest.approx(nll, rel=1e-10)
        assert held[f"{part}_loss"] == pytest.approx(nll + kappa * held["l2"], rel=1e-10)
    with pytest.raises(im.InputError, match="test: expected None"):
        im.save_curve_npz(im.profile(objective, path, 3), tmp_path / "a.npz", objective, path, test)


def test_statistics_are_no_weights_and_what_was_not_measured_is_not_there(tmp_path):
    p = convolutional()
    connection = im.connect(p.objective, p.a, p.b)
    profile = im.profile(p.objective, connection, 3)
    for file in ("a.npz", "b"):
        im.save_curve_npz(profile, tmp_path / file, p.objective, connection)
    held = np.load(tmp_path / "b")
    assert set(held.files) == {k for k in KEYS if not k.startswith("te_")}
    assert held["dl"].sum() == pytest.approx(np.linalg.norm(flat(p.objective, p.b) - flat(p.objective, p.a)))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(im.InputError, match="profile: expected one of 2 segments"):
        im.save_curve_npz(profile, tmp_path / "c.npz", p.objective, Path.through([p.a, p.b, p.a]))
