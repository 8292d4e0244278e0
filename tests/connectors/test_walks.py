"""The moves of the constructions against loops over single entries: what each sets, and that nothing else changes."""

import pytest
import torch

import isthmus as im
from isthmus.connectors.moves.units import Label, WeightWalk, join, labels_as_text
from isthmus.params import equal
from isthmus.structure.chain import chain_of
from isthmus.structure.network_units import complement
from tests.problems import classify, small_convnet


@pytest.fixture(scope="module")
def convolutional():
    problem = classify("convolutional", small_convnet(), (1, 8, 8))
    return problem, chain_of(problem.objective.program, problem.objective.structure)


def some(n, k, g):
    return torch.randperm(n, generator=g)[:k]


def only(walk, before, l, entry, bias):
    """Layer l has these entries and biases now, every other layer those of before."""
    for i, A in walk.now.A.items():
        if i != l:
            assert torch.equal(A, before.A[i])
            assert torch.equal(walk.now.b[i], before.b[i])
    for i, row in enumerate(walk.now.A[l]):
        assert torch.equal(walk.now.b[l][i], bias(i))
        for j, value in enumerate(row):
            assert torch.equal(value, entry(i, j)), (l, i, j)


def test_rows_that_are_put_zeroed_or_copied_are_all_that_changes(convolutional):
    problem, chain = convolutional
    g = torch.Generator().manual_seed(0)
    walk = WeightWalk(chain, problem.a)
    for l in range(1, chain.L):
        n, m, k = walk.now.A[l].shape
        rows, columns = some(n, 3, g), some(m, max(1, m // 2), g)
        A, b = (
            torch.randn(3, len(columns), k, generator=g).double(),
            torch.randn(3, walk.now.b[l].shape[1], generator=g).double(),
        )
        r, c, before = rows.tolist(), columns.tolist(), walk.now.copy()
        zero = torch.zeros(k).double()

        def put(i, j, r=r, c=c, A=A, old=before.A[l], zero=zero):
            return old[i, j] if i not in r else A[r.index(i), c.index(j)] if j in c else zero

        walk.put_rows(l, rows, columns, A, b)
        only(walk, before, l, put, lambda i, r=r, b=b, old=before.b[l]: b[r.index(i)] if i in r else old[i])

        before, to = walk.now.copy(), complement(n, rows)[:3]
        source = dict(zip(to.tolist(), r, strict=True))
        walk.copy_rows(l, rows, to)
        A, b = before.A[l], before.b[l]
        only(walk, before, l, lambda i, j, A=A, s=source: A[s.get(i, i), j], lambda i, b=b, s=source: b[s.get(i, i)])

        before, t = walk.now.copy(), to.tolist()
        walk.zero_rows(l, to)
        A, b = before.A[l], before.b[l]
        only(walk, before, l, lambda i, j, A=A, t=t: A[i, j] * (i not in t), lambda i, b=b, t=t: b[i] * (i not in t))
    start = chain.read(problem.a)
    assert all(torch.equal(walk.original.A[l], start.A[l]) for l in start.A)


def test_columns_and_outputs_that_are_moved_are_all_that_changes(convolutional):
    problem, chain = convolutional
    g = torch.Generator().manual_seed(0)
    walk = WeightWalk(chain, problem.a)
    for l in range(1, chain.L):
        n = chain.widths[l]
        source = some(n, 2, g)
        to = complement(n, source)[:2]
        s, t, before = source.tolist(), to.tolist(), walk.now.copy()
        walk.move_columns(l, source, to)

        def moved(i, j, s=s, t=t, A=before.A[l + 1]):
            return A[i, s[t.index(j)]] if j in t else A[i, j] * (j not in s)

        only(walk, before, l + 1, moved, lambda i, b=before.b[l + 1]: b[i])
    before = walk.now.copy()
    n, m, k = before.A[chain.L].shape
    columns = some(m, 4, g)
    A, b, c = torch.randn(n, 4, k, generator=g).double(), torch.randn(n, 1, generator=g).double(), columns.tolist()
    walk.put_output(columns, A, b)
    only(walk, before, chain.L, lambda i, j: A[i, c.index(j)] if j in c else torch.zeros(k).double(), lambda i: b[i])


def test_the_five_segments_arrive_where_they_are_told_to(convolutional):
    """Units that stay are handed to nobody; the walk ends at the very weights that are asked for."""
    problem, chain = convolutional
    g = torch.Generator().manual_seed(0)
    walk = WeightWalk(chain, problem.a)
    live = {l: some(chain.widths[l], chain.widths[l] // 2, g) for l in range(1, chain.L)}
    to = {l: live[l].roll(1) if l > 1 else live[l] for l in live}
    for l in live:
        walk.now.A[l + 1] = walk.now.A[l + 1].clone()
        walk.now.A[l + 1][:, complement(chain.widths[l], live[l])] = 0
    walk.step("start", "a")
    asked = []
    walk.each_layer(lambda l, s, t: asked.append((l, s.tolist(), t.tolist())), 2, live, to)
    assert asked == [(l, live[l].tolist(), to[l].tolist()) for l in range(2, chain.L)]
    walk.each_layer(lambda l, s, t: asked.append((l, s.tolist(), t.tolist())), 1, live, to)
    assert asked[chain.L - 2] == (1, [], [])

    other = WeightWalk(chain, walk.points[-1])
    walk.permute_live(live, to, "Lemma 4")
    arrive = walk.now.copy()
    for l in live:
        arrive.A[l][complement(chain.widths[l], to[l])] = 1.5  # rows of dead units
    other.permute_live(live, to, "Lemma 4", arrive)
    read = chain.read(other.points[-1])
    assert all(torch.equal(read.A[l], arrive.A[l]) and torch.equal(read.b[l], arrive.b[l]) for l in arrive.A)
    assert labels_as_text(other.labels) == [
        "Lemma 4, copy to free units (b)", "Lemma 4, hand over outgoing weights (m)",
        "Lemma 4, copy to final units (b)", "Lemma 4, hand over outgoing weights (m)", "Lemma 4, clear dead units (b)",
    ]  # fmt: skip
    kept = arrive.copy()
    other.zero_rows(1, to[1])  # walking on leaves the weights that were given as they are
    assert all(torch.equal(arrive.A[l], kept.A[l]) and torch.equal(arrive.b[l], kept.b[l]) for l in kept.A)
    y = problem.objective.outputs(other.points[0])
    for segment in im.Path.through(other.points).segments:
        for t in (0.5, 1.0):
            torch.testing.assert_close(problem.objective.outputs(segment.at(t)), y, rtol=1e-12, atol=1e-12)


def test_two_walks_that_meet_are_one_path_and_counters_may_differ(convolutional):
    problem, chain = convolutional
    counter = next(k for k, v in problem.a.items() if not v.is_floating_point())
    there, back = (WeightWalk(chain, p) for p in (problem.a, {**problem.a, counter: problem.a[counter] + 3}))
    for l in (1, 2):
        there.zero_rows(l, torch.tensor([l]))
        there.step(f"there {l}", "b")
    for l in (2, 1):
        back.zero_rows(l, torch.tensor([l]))
        back.step(f"back {l}", "m")
    path, labels = join(there, back)
    assert labels == [
        Label("there 1", "b"), Label("there 2", "b"), Label("back 1, backwards", "m"), Label("back 2, backwards", "m")
    ]  # fmt: skip
    assert all(map(equal, path.knots[:3], there.points))
    assert all(map(equal, path.knots[3:], (back.points[1], back.points[0])))
    assert len(path.knots) == 5
