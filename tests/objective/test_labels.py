"""Class labels: what counts, where the classes stand, what the user may hand over as data."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import isthmus as im
from isthmus.errors import InputError
from isthmus.objective.labels import Labels, find_axis
from isthmus.sweep.parallel import profile_in_parallel
from tests.problems import random_params


class Pointwise(nn.Linear):
    """Outputs [n, T, classes]; with `torchs` [n, classes, T]."""

    def __init__(self, features, classes, torchs=False):
        super().__init__(features, classes)
        self.torchs = torchs

    def forward(self, input):
        z = super().forward(input)
        return z.mT if self.torchs else z


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def ragged():
    """x [9, 6, 5], labels [9, 6] of 4 classes, of which an uneven share is ignored, all of the first example."""
    x = torch.randn(9, 6, 5, generator=generator(), dtype=torch.float64)
    y = torch.randint(4, (9, 6), generator=generator())
    y[0], y[1, :4], y[2, 0] = 255, 255, 255
    return x, y


def by_hand(params, data, ignored):
    """The mean over the examples that have a label of the mean over their own labels: the loss, the error."""
    losses, errors = [], []
    for row, labels in zip(*data, strict=True):
        counts = labels != ignored
        if counts.any():
            z = F.linear(row, params["weight"], params["bias"])[counts]
            losses.append(F.cross_entropy(z, labels[counts]))
            errors.append((z.argmax(1) != labels[counts]).double().mean())
    return float(torch.stack(losses).mean()), float(torch.stack(errors).mean())


@pytest.mark.parametrize("memory", [1, 1 << 28])
@pytest.mark.parametrize("torchs", [False, True])
def test_ignored_labels_count_neither_in_the_loss_nor_in_the_error(ragged, torchs, memory):
    module = Pointwise(5, 4, torchs).double()
    params = random_params(module, 1)
    objective = im.Objective(module, data=ragged, ignore_index=255, memory=memory)
    loss, error = by_hand(params, ragged, 255)
    assert objective.loss(params) == pytest.approx(loss, rel=1e-12)
    assert objective.error(params) == pytest.approx(error, rel=1e-12)
    assert float(objective.batch_loss(params, torch.arange(9))) == pytest.approx(loss, rel=1e-12)
    assert float(objective.losses(params)[0]) == 0
    path = im.Path.through([params, random_params(module, 2)])
    measured = im.profile(objective, path, 5)
    assert measured.loss[2] == pytest.approx(by_hand(path.at(0.5), ragged, 255)[0], rel=1e-12)
    assert measured.error[2] == pytest.approx(by_hand(path.at(0.5), ragged, 255)[1], rel=1e-12)


def test_the_default_ignored_label_is_torchs(ragged):
    x, y = ragged
    module = Pointwise(5, 4).double()
    params = random_params(module, 1)
    ours = im.Objective(module, data=(x, torch.where(y == 255, -100, y)))
    assert ours.measure(params) == im.Objective(module, data=ragged, ignore_index=255).measure(params)
    assert ours.describe().keys() & {"ignore_index", "class_axis"} == set()
    described = im.Objective(module, data=ragged, ignore_index=255, class_axis=-1).describe()
    assert (described["ignore_index"], described["class_axis"]) == (255, -1)


def test_a_callable_loss_never_has_ignored_labels_counted_as_wrong():
    module = nn.Conv2d(3, 5, 1).eval()
    x = torch.randn(8, 3, 6, 6, generator=generator())
    y = module(x).argmax(1).detach()
    y[:, :2] = 255

    def loss(outputs, y):
        counts = y != 255
        return (F.cross_entropy(outputs, y, ignore_index=255, reduction="none") * counts).sum((1, 2)) / counts.sum(
            (1, 2)
        )

    params = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(im.InputError, match=r"labels from 0 to 4, got \d to 255; write ignore_index=255.*or error="):
        im.Objective(module, loss, (x, y))
    objective = im.Objective(module, loss, (x, y), ignore_index=255)
    assert objective.error(params) == 0.0
    named = im.Objective(module, data=(x, y), ignore_index=255)
    assert named.measure(params) == pytest.approx(objective.measure(params), rel=1e-6)
    worse = {k: -v for k, v in params.items()}
    right = (F.conv2d(x, worse["weight"], worse["bias"]).argmax(1) == y)[y != 255].float().mean()
    assert objective.error(worse) == pytest.approx(1 - float(right), rel=1e-6)


def test_labels_off_by_one_are_refused_for_a_callable_loss_too():
    module, x = nn.Linear(3, 4), torch.randn(6, 3, generator=generator())
    y = torch.tensor([1, 2, 3, 4, 1, 2])

    def loss(outputs, y):
        return F.cross_entropy(outputs, y - 1, reduction="none")

    with pytest.raises(im.InputError, match=r"labels from 0 to 3, got 1 to 4"):
        im.Objective(module, loss, (x, y))
    im.Objective(module, loss, (x, y), error=lambda z, y: (z.argmax(1) != y - 1).float())
    with pytest.raises(im.InputError, match=r"ignore_index: expected None: a callable loss, error="):
        im.Objective(module, loss, (x, y), error=lambda z, y: (z.argmax(1) != y - 1).float(), ignore_index=4)


def test_data_of_ignored_labels_alone_are_refused():
    with pytest.raises(im.InputError, match=r"a label that counts, got only -100"):
        im.Objective(nn.Linear(3, 4), data=(torch.zeros(2, 3), torch.full((2,), -100)))


def test_certificates_leave_ignored_labels_out(ragged):
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), Pointwise(7, 4)).double()
    a, b = random_params(module, 1), random_params(module, 2)
    path = im.Path.through([a, b])
    for axis in (None, -1):
        objective = im.Objective(module, data=ragged, ignore_index=255, class_axis=axis)
        proof, measured = im.certify(objective, path, budget=60), im.profile(objective, path, 101)
        assert proof.proved
        assert proof.segments[0].claim == "bounded"
        assert measured.max <= proof.bound <= 1.3 * measured.max
        error = proof.segments[0].error_bound
        assert error is None or error >= float(measured.error.max())
    last = {k: b[k] if k.startswith("2") else v for k, v in a.items()}
    proof = im.certify(objective, im.Path.through([a, last]))
    assert proof.segments[0].claim == "convex"
    bound = proof.segments[0].error_bound
    assert bound is not None
    assert bound >= float(im.profile(objective, im.Path.through([a, last]), 51).error.max())


def test_the_axis_of_the_classes_is_asked_for_where_shapes_do_not_tell():
    x = torch.randn(7, 4, 3, generator=generator(), dtype=torch.float64)
    y = torch.randint(4, (7, 4), generator=generator())
    module = Pointwise(3, 4).double()  # outputs [7, 4, 4]
    params = random_params(module, 1)
    z = F.linear(x, params["weight"], params["bias"])
    for loss in ("cross_entropy", nn.CrossEntropyLoss(), lambda z, y: F.cross_entropy(z, y, reduction="none").mean(1)):
        with pytest.raises(im.InputError, match=r"class_axis: .* write class_axis=1 .* or class_axis=-1"):
            im.Objective(module, loss, (x, y))
    for axis, outputs in ((1, z), (-1, z.mT), (2, z.mT)):
        objective = im.Objective(module, "cross_entropy", (x, y), class_axis=axis)
        assert objective.loss(params) == pytest.approx(float(F.cross_entropy(outputs, y)), rel=1e-12)
        assert objective.error(params) == pytest.approx(float((outputs.argmax(1) != y).double().mean()))
        assert objective.cast(torch.float64).subset(7).measure(params) == objective.measure(params)
    with pytest.raises(im.InputError, match=r"class_axis: expected 1 to 2, or -1, got 0"):
        im.Objective(module, data=(x, y), class_axis=0)
    with pytest.raises(im.InputError, match=r"class_axis: expected None: mse has no classes"):
        im.Objective(module, "mse", (x, z), class_axis=1)


def test_probabilities_tell_their_axis_by_their_sums():
    x = torch.randn(7, 6, 3, generator=generator(), dtype=torch.float64)
    y = torch.rand(7, 6, 4, generator=generator(), dtype=torch.float64).softmax(-1)
    module = Pointwise(3, 4).double()
    params = random_params(module, 1)
    z = F.linear(x, params["weight"], params["bias"])
    objective = im.Objective(module, data=(x, y))
    assert objective.loss(params) == pytest.approx(float(F.cross_entropy(z.mT, y.mT)), rel=1e-12)
    assert objective.error(params) == pytest.approx(float((z.argmax(2) != y.argmax(2)).double().mean()))
    with pytest.raises(im.InputError, match="class_axis=1"):
        im.Objective(module, data=(x, y / 2))
    with pytest.raises(im.InputError, match="probabilities >= 0"):
        im.Objective(module, data=(x, y - 1), class_axis=-1)


def test_find_axis_takes_whichever_fits():
    z = torch.zeros(2, 5, 3)
    assert find_axis(z, torch.zeros(8, 3, dtype=torch.int64), None) == 1
    assert find_axis(z, torch.zeros(8, 5, dtype=torch.int64), None) == 2
    with pytest.raises(im.InputError, match=r"integer labels of shape \(n, 3\) or \(n, 5\)"):
        find_axis(z, torch.zeros(8, 4, dtype=torch.int64), None)


def test_parts_of_the_data_keep_the_weights_of_the_whole(ragged):
    module = Pointwise(5, 4).double()
    params, other = random_params(module, 1), random_params(module, 2)
    for loss in ("cross_entropy", nn.CrossEntropyLoss(ignore_index=255)):
        objective = im.Objective(module, loss, ragged, ignore_index=255)
        parts = [objective.part(slice(i, i + 1)) for i in range(9)]  # the first has no label that counts
        means = torch.tensor([p.measure(params) for p in parts], dtype=torch.float64).mean(0)
        assert means.tolist() == pytest.approx(objective.measure(params), rel=1e-12)
        path = im.Path.through([params, other])
        chunks = profile_in_parallel(objective, path, num_points=5, chunk=2)
        assert chunks.loss.tolist() == pytest.approx(im.profile(objective, path, 5).loss.tolist(), rel=1e-12)
        assert chunks.error.tolist() == pytest.approx(im.profile(objective, path, 5).error.tolist(), rel=1e-12)


def test_averages_of_positions():
    y = torch.tensor([[0, -100], [1, 1], [-100, -100]])
    values = torch.tensor([[4.0, 9.0], [1.0, 2.0], [7.0, 7.0]])
    assert float(Labels.of(y, 1, -100).average(values, y).mean()) == pytest.approx((4 + 1.5) / 2)
    assert float(Labels.of(y, 1, -100, together=True).average(values, y).mean()) == pytest.approx((4 + 1 + 2) / 3)


# -- what the data may be


class Table:
    """A column or a table of pandas, as far as it matters."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return self.values


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def twelve():
    return torch.randn(12, 5, generator=generator()), torch.arange(12) % 4


SAME = {
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "arrays of the other byte order": lambda x, y: (x.numpy().astype(">f4"), y.numpy().astype(">i4")),
    "unsigned labels": lambda x, y: (x, y.numpy().astype(np.uint16)),
    "tables": lambda x, y: (Table(x.numpy()), Table(y.numpy())),
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "int32": lambda x, y: (x, y.int()),
    "uint8": lambda x, y: (x, y.to(torch.uint8)),
    "one-hot": lambda x, y: (x, F.one_hot(y, 4).float()),
    "a graph": lambda x, y: (x.clone().requires_grad_(), y),
    "strides": lambda x, y: (x.t().contiguous().t(), y),
    "a loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
    "batches": lambda x, y: [[x[:5], y[:5]], [x[5:], y[5:]]],
    "batches of arrays": lambda x, y: [(x[:5].numpy(), y[:5].numpy()), (x[5:].numpy(), y[5:].numpy())],
    "arguments by name": lambda x, y: ({"input": x.numpy()}, y),
    "a data set": TensorDataset,
    "a dictionary": lambda x, y: {"x": x, "y": y.numpy()},
    "batches of dictionaries": lambda x, y: [{"input": x[:5], "labels": y[:5]}, {"input": x[5:], "labels": y[5:]}],
    "a data set of dictionaries": lambda x, y: Rows([{"input": a, "label": int(b)} for a, b in zip(x, y, strict=True)]),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME.keys())
def test_the_same_data_in_other_containers(make):
    module = nn.Linear(5, 4)
    params = random_params(module, 1, torch.float32)
    want = im.Objective(module, data=twelve()).measure(params)
    objective = im.Objective(module, data=make(*twelve()))
    assert objective.dtype is torch.float32
    assert objective.measure(params) == pytest.approx(want, rel=1e-6)


REFUSED = {
    "single examples": (lambda x, y: list(zip(x, y, strict=True)), r"single examples; write DataLoader"),
    "a dictionary": (lambda x, y: {"x": x, "z": y}, r"keys x, z; write targets="),
    "one part": (lambda x, y: TensorDataset(x), r"got 1 part; write forward="),
    "three parts": (lambda x, y: (x, x, y), r"examples that Linear accepts, got .*positional arguments"),
    "unlike batches": (lambda x, y: [{"x": x, "y": y}, {"z": x, "y": y}], r"all alike"),
    "lengths": (lambda x, y: [(x[:5], y[:5]), (x[5:, :3], y[5:])], r"\(3,\) and \(5,\); write a loader that pads"),
    "ragged lists": (lambda x, y: ([[1.0, 2.0], [1.0]], [0, 1]), r"rows of one length"),
    "words": (lambda x, y: (x, np.array(["a"] * 12)), r"arrays of numbers"),
    "sparse": (lambda x, y: (x.to_sparse(), y), r"x.to_dense\(\)"),
    "a number": (lambda x, y: (x, torch.tensor(1)), r"got single examples"),
    "no targets": (lambda x, y: x, r"a pair \(x, y\)"),
    "another device": (lambda x, y: (x, y.to("meta")), r"all tensors on meta, got cpu; write x.to"),
    "a column of labels": (lambda x, y: (x, y[:, None]), r"write y\[:, 0\]"),
    "one-hot integers": (lambda x, y: (x, F.one_hot(y, 4)), r"write y.argmax\(1\)"),
    "floating-point labels": (lambda x, y: (x, y.float()), r"write y.long\(\)"),
    "whole numbers in": (lambda x, y: ((10 * x).to(torch.uint8), y), r"write x.float\(\)"),
    "no numbers": (lambda x, y: (x, torch.full((12, 4), torch.nan)), r"12|48 NaN"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_data_are_refused_with_what_to_write(make, message):
    with pytest.raises(im.InputError, match=message) as caught:
        im.Objective(nn.Linear(5, 4), data=make(*twelve()))
    assert "\n" not in str(caught.value)


def test_what_is_to_be_written_works():
    x, y = twelve()
    module = nn.Linear(5, 4)
    params = random_params(module, 1, torch.float32)
    loader = [{"input": x[:7], "labels": y[:7]}, {"input": x[7:], "labels": y[7:]}]
    batches = [({k: v for k, v in b.items() if k != "labels"}, b["labels"]) for b in loader]
    assert im.Objective(module, data=batches).loss(params) == im.Objective(module, data=(x, y)).loss(params)


def test_float64_arrays_follow_the_rule_for_tensors():
    x, y = twelve()
    assert im.Objective(nn.Linear(5, 4), data=(x.double().numpy(), y)).dtype is torch.float64
    assert im.Objective(nn.Linear(5, 4), data=(x.double().numpy(), y), dtype=torch.float32).dtype is torch.float32


def test_error_rates_with_ignored_labels_are_shares_of_whole_numbers():
    y = torch.tensor([0, 1, -100, 1, -100, 0, 1])
    objective = im.Objective(nn.Linear(2, 2), "cross_entropy", (torch.ones(7, 2), y))
    assert objective.error({"weight": torch.zeros(2, 2), "bias": torch.tensor([1.0, 0.0])}) == pytest.approx(
        0.6, abs=1e-15
    )


def test_weights_of_a_loss_must_be_one_per_class():
    with pytest.raises(InputError, match=r"loss\.weight: expected one per class \(4\), got \(3,\)"):
        im.Objective(nn.Linear(2, 4), nn.CrossEntropyLoss(torch.ones(3)), (torch.ones(5, 2), torch.arange(5) % 4))


@pytest.mark.parametrize("loss", ["hinge", nn.MultiMarginLoss()])
def test_a_loss_that_ignores_no_label_is_not_told_to(loss):
    with pytest.raises(im.InputError, match=r"expected labels from 0 to 2, got -100 to 2$"):
        im.Objective(nn.Linear(4, 3), loss, (torch.zeros(3, 4), torch.tensor([0, -100, 2])))
