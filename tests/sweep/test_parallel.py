"""Profile and certificate by segment and chunk: the answer of the serial functions, whatever the chunks."""

import json
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.sweep import certify_in_parallel, profile_in_parallel
from isthmus.sweep.base import Engine, Failed, one_thread
from tests.evaluate.networks import CASES, ends, objective_of
from tests.problems import PROBLEMS, Atan, two_layers


@pytest.mark.parametrize("chunk", [0, 2.5, True, "a"])
def test_a_chunk_is_a_whole_number(chunk):
    p = two_layers()
    with pytest.raises(im.InputError, match="chunk"):
        profile_in_parallel(p.objective, im.Path.through([p.a, p.b]), 3, chunk=chunk)


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("chunk", [5, 1000])
def test_the_profile_is_that_of_all_data(make, chunk):
    p = make()
    path = im.Path.through([p.a, p.b, p.a])
    whole = im.profile(p.objective, path, 5)
    parts = profile_in_parallel(p.objective, path, 5, chunk=chunk)
    assert torch.equal(parts.t, whole.t)
    assert torch.equal(parts.segment, whole.segment)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(parts.error, whole.error, rtol=1e-13, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("bn", ["recompute", "interpolate", "keep"])
def test_running_statistics_are_those_of_all_examples(bn):
    objective, path = objective_of(CASES[2], n=40), im.Path.through(ends(CASES[2], count=3))
    test = objective.subset(9)
    whole = im.profile(objective, path, 4, bn=bn, test=test)
    parts = profile_in_parallel(objective, path, 4, bn=bn, test=test, chunk=7)
    assert parts.bn == bn
    assert parts.test is not None
    assert whole.test is not None
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.test.loss, whole.test.loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", PROBLEMS[:5])
def test_exact_claims_lose_nothing(make):
    p = make()
    connection = im.connect(p.objective, p.a, p.b, im.Dropout(masks=1))
    labels = connection.stats["segments"]
    whole = im.certify(p.objective, connection.path, labels=labels)
    parts = certify_in_parallel(p.objective, connection.path, labels=labels, chunk=13)
    assert parts.proved
    assert parts.counts == whole.counts
    assert [s.label for s in parts.segments] == labels
    assert parts.bound == pytest.approx(whole.bound, rel=1e-11)
    assert parts.ends == pytest.approx(whole.ends, rel=1e-13)
    assert parts.bound >= im.profile(p.objective, connection.path, 21).max


def test_numerical_bounds_of_the_chunks_add_up_to_a_bound():
    p = two_layers()
    path = im.Path.through([p.a, p.b])
    found = certify_in_parallel(p.objective, path, 0.05, chunk=7)
    assert found.counts == {"bounded": 1}
    true = im.profile(p.objective, path, 4001).max
    assert true <= found.bound <= 1.2 * true
    pieces = found.segments[0].intervals
    assert pieces[0][0] == 0
    assert pieces[-1][1] == 1
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    fine = im.profile(p.objective, path, 401)
    for start, end, bound in pieces:
        inside = (fine.t >= start) & (fine.t <= end)
        assert float(fine.loss[inside].max()) <= bound


def test_sub_intervals_by_workers_give_the_certificate_of_one_process(tmp_path):
    """Also from a folder that holds a part of the bounds, and where a budget or a jump of the largest loss ends it."""
    p = two_layers()
    path = im.Path.through([p.a, p.b, p.a])
    for budget, gap in ((0.5, 0.01), (30, 0.05)):
        with one_thread():
            alone = im.certify(p.objective, path, gap, model="chord", budget=budget)
        for at_once in (1, 3, 16):
            found = certify_in_parallel(p.objective, path, gap, model="chord", budget=budget, engine=Several(at_once))
            assert json.dumps(found.to_dict()) == json.dumps(alone.to_dict())
    assert alone.counts == {"bounded": 2}
    first = certify_in_parallel(p.objective, path, gap, model="chord", budget=1, memory=tmp_path)
    assert first.evaluations < alone.evaluations
    engine = Several(4)
    assert certify_in_parallel(p.objective, path, gap, model="chord", engine=engine, memory=tmp_path) == alone
    assert engine.asked
    assert len(set(engine.asked)) == len(engine.asked)  # nothing is computed twice


def test_a_worker_that_is_lost_is_said_and_nothing_is_proved():
    p = two_layers()
    with pytest.raises(im.IsthmusError, match=r"segment 0, t from .* to 1\.0: it was killed"):
        certify_in_parallel(p.objective, im.Path.through([p.a, p.b]), model="chord", engine=Several(2, lost=True))
    with pytest.raises(im.InputError, match="box without a memory"):
        certify_in_parallel(p.objective, im.Path.through([p.a, p.b]), model="auto")


@dataclass(eq=False)
class Several(Engine):
    """In this process, from the last item to the first, on copies of what is shared."""

    workers: int = 1
    lost: bool = False
    asked: list = field(default_factory=list)

    @property
    def name(self) -> str:
        return "several"

    @property
    def at_once(self) -> int:
        return self.workers

    def map(self, function, shared, items, after=None):
        self.asked += items
        for k, item in reversed(list(enumerate(items))):
            yield k, Failed("it was killed") if self.lost else function(replace(shared), item)


def test_what_cannot_be_proved_is_measured_on_all_data():
    p = two_layers()
    module = nn.Sequential(nn.Linear(5, 9), Atan(), nn.Linear(9, 4)).double()
    objective = im.Objective(module, data=p.objective.data)
    path = im.Path.through([p.a, p.b])
    found = certify_in_parallel(objective, path, chunk=7, num_points=31)
    measured = im.profile(objective, path, 31)
    assert not found.proved
    assert found.bound == pytest.approx(measured.max, rel=1e-13)
    assert found.segments[0].witness == pytest.approx(float(measured.t[measured.loss.argmax()]))


def test_bad_arguments_are_refused():
    p = two_layers()
    path = im.Path.through([p.a, p.b])
    with pytest.raises(im.InputError, match="chunk"):
        profile_in_parallel(p.objective, path, chunk=0)
    with pytest.raises(im.InputError, match="labels"):
        certify_in_parallel(p.objective, path, labels=["one", "two"])
    with pytest.raises(im.InputError, match="num_points"):
        profile_in_parallel(p.objective, path, 1)
