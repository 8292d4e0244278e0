"""The losses of torch, taken as they are; what a callable loss must be."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isthmus as im
from tests.problems import perceptron, random_params

WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def module():
    return perceptron([5, 7, 4]).double()


@pytest.fixture
def x():
    return torch.randn(9, 5, generator=generator(), dtype=torch.float64)


def labels():
    y = torch.randint(4, (9,), generator=generator())
    y[:3] = -100
    return y


def numbers():
    return torch.rand(9, 4, generator=generator(), dtype=torch.float64)


CLASSES = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(weight=WEIGHT),
    nn.CrossEntropyLoss(label_smoothing=0.2),
    nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2, ignore_index=2),
    nn.CrossEntropyLoss(reduction="sum"),
    nn.NLLLoss(weight=WEIGHT),
]
ENTRIES = [
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.L1Loss(),
    nn.SmoothL1Loss(beta=0.3),
    nn.HuberLoss(delta=0.2, reduction="sum"),
    nn.KLDivLoss(reduction="batchmean"),
    nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
    nn.PoissonNLLLoss(),
    nn.SoftMarginLoss(),
    nn.HingeEmbeddingLoss(),
    nn.MultiLabelSoftMarginLoss(weight=WEIGHT),
]


def targets(loss):
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return torch.where(labels() == -100, loss.ignore_index, labels())
    return numbers()


@pytest.mark.parametrize("memory", [1, 1 << 28])
@pytest.mark.parametrize("loss", [*CLASSES, *ENTRIES], ids=repr)
def test_the_objective_is_what_torchs_loss_gives_on_the_whole_data_set(module, x, loss, memory):
    params, y = random_params(module, 1), targets(loss)
    before = copy.deepcopy(loss.state_dict()), loss.reduction
    objective = im.Objective(module, loss, (x, y), memory=memory)
    want = float(loss(objective.outputs(params), y))
    assert objective.loss(params) == pytest.approx(want, rel=1e-12)
    assert float(objective.batch_loss(params, torch.arange(9))) == pytest.approx(want, rel=1e-12)
    assert objective.convex
    assert (loss.state_dict().keys(), loss.reduction) == (before[0].keys(), before[1])
    again = pickle.loads(pickle.dumps(objective))
    assert again.loss(params) == objective.loss(params)


@pytest.mark.parametrize("loss", [*CLASSES, *ENTRIES], ids=repr)
def test_what_is_proved_of_torchs_losses_is_above_what_is_measured(module, x, loss):
    objective = im.Objective(module, loss, (x, targets(loss)))
    a, b = random_params(module, 1), random_params(module, 2)
    last = {k: b[k] if k.startswith("2") else v for k, v in a.items()}
    for path, claim in ((im.Path.through([a, last]), "convex"), (im.Path.through([a, b]), "bounded")):
        proof = im.certify(objective, path, budget=40)
        assert proof.segments[0].claim == claim
        assert proof.bound >= im.profile(objective, path, 51).max


@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ragged_positions_are_averaged_as_the_reduction_says(options, reduction):
    module = nn.Linear(5, 4).double()
    x = torch.randn(6, 3, 5, generator=generator(), dtype=torch.float64)
    y = torch.randint(4, (6, 3), generator=generator())
    y[0], y[1, 0] = -100, -100
    loss = nn.CrossEntropyLoss(**options, reduction=reduction)
    objective, params = im.Objective(module, loss, (x, y)), random_params(module, 1)
    z = objective.outputs(params).mT
    counts = y != -100
    wrong = (z.argmax(1) != y) & counts
    if reduction == "none":
        alone = [i for i in range(6) if counts[i].any()]
        want = float(sum(loss(z, y)[i].sum() / counts[i].sum() for i in alone) / len(alone))
        error = float(sum(wrong[i].sum() / counts[i].sum() for i in alone) / len(alone))
    else:
        want, error = float(loss(z, y)), float(wrong.sum() / counts.sum())
    assert objective.measure(params) == pytest.approx((want, error), rel=1e-6)
    assert objective.loss(params) == pytest.approx(want, rel=1e-12)


def test_a_plain_cross_entropy_is_the_named_one_and_any_option_makes_it_another(module, x):
    y = torch.arange(9) % 4
    params = random_params(module, 1)
    named = im.Objective(module, data=(x, y))
    plain = im.Objective(module, nn.CrossEntropyLoss(), (x, y))
    assert plain.named_loss == named.named_loss == "cross_entropy"
    assert plain.measure(params) == named.measure(params)
    for loss in (nn.CrossEntropyLoss(weight=WEIGHT), nn.CrossEntropyLoss(label_smoothing=0.1)):
        objective = im.Objective(module, loss, (x, y))
        assert objective.named_loss is None
        described = objective.describe()
        assert described["loss"] == "CrossEntropyLoss"
        assert described["loss_options"]["label_smoothing"] == loss.label_smoothing
        assert described["loss_options"]["weight"] == (None if loss.weight is None else WEIGHT.tolist())
    assert im.Objective(module, data=(x, labels())).named_loss is None, "a label is left out"


def test_convexity_is_read_and_cannot_be_claimed_against_what_is_known(module, x):
    negative = nn.CrossEntropyLoss(weight=-WEIGHT)
    y = torch.arange(9) % 4
    with pytest.raises(im.InputError, match="weights have a sum > 0"):
        im.Objective(module, negative, (x, y))
    mixed = nn.CrossEntropyLoss(weight=torch.tensor([1.0, -0.1, 1.0, 1.0]))
    assert not im.Objective(module, mixed, (x, y)).convex
    with pytest.raises(im.InputError, match="not convex in the outputs"):
        im.Objective(module, mixed, (x, y), convex=True)
    assert not im.Objective(module, "cross_entropy", (x, y), convex=False).convex
    probabilities = nn.Sequential(module, nn.Sigmoid())
    assert not im.Objective(probabilities, nn.BCELoss(), (x, numbers())).convex
    linear = nn.Linear(5, 4).double()
    a, b = random_params(linear, 1), random_params(linear, 2)
    proof = im.certify(im.Objective(linear, mixed, (x, y)), im.Path.through([a, b]))
    assert not proof.proved


def test_later_changes_of_the_loss_do_not_matter(module, x):
    loss, y = nn.CrossEntropyLoss(weight=WEIGHT.clone()), torch.arange(9) % 4
    params = random_params(module, 1)
    objective = im.Objective(module, loss, (x, y))
    value = objective.loss(params)
    loss.get_buffer("weight").mul_(torch.tensor([5.0, 1.0, 1.0, 1.0]))
    loss.reduction = "sum"
    assert objective.loss(params) == objective.cast(torch.float64).loss(params) == value


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float64])
def test_one_logit_with_labels_0_and_1(x, shape, kind):
    class Logit(nn.Linear):
        def forward(self, input):
            return super().forward(input).view(len(input), *shape)

    module = Logit(5, 1).double()
    params, y = random_params(module, 1), (x[:, 0] > 0).view(9, *shape)
    objective = im.Objective(module, nn.BCEWithLogitsLoss(), (x, y.to(kind)))
    z = F.linear(x, params["weight"], params["bias"]).view(9, *shape)
    assert objective.loss(params) == pytest.approx(float(F.binary_cross_entropy_with_logits(z, y.double())), rel=1e-12)
    assert objective.error(params) == pytest.approx(float(((z > 0) != y).double().mean()))
    assert 0 < objective.error(params) < 1
    with pytest.raises(im.InputError, match=r"nn.BCEWithLogitsLoss\(\)"):
        im.Objective(module, data=(x, (x[:, 0] > 0).to(torch.int64)))


@pytest.mark.parametrize("loss", ["mse", nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.BCEWithLogitsLoss()])
def test_targets_that_torch_would_broadcast_are_refused(x, loss):
    with pytest.raises(im.InputError, match=r"the shape of the outputs, \(n, 1\), .*write y\[:, None\]"):
        im.Objective(nn.Linear(5, 1).double(), loss, (x, x[:, 0].sigmoid()))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss, r"got the class CrossEntropyLoss; write nn.CrossEntropyLoss\(\)"),
        (F.cross_entropy, r"one value per example, shape \(4,\), got \(\); write .*nn.CrossEntropyLoss\(\)"),
        (nn.GaussianNLLLoss(), r"expected one of CrossEntropyLoss, .* got GaussianNLLLoss"),
        (nn.CrossEntropyLoss(reduction="total"), r"loss.reduction: .* got 'total'"),
        (3, r"loss: expected one of .* got 3"),
        (lambda z, y: F.cross_entropy(z, y, reduction="none") / z.sum(), "depend on the other examples"),
        (lambda z, y: z @ y, r"loss: expected a function of outputs \(4, 4\) and y \(4,\)"),
    ],
)
def test_what_is_no_loss_of_each_example_is_refused(module, x, loss, message):
    with pytest.raises(im.InputError, match=message):
        im.Objective(module, loss, (x, torch.arange(9) % 4))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda z, y: (z.argmax(1) != y).double().mean(), r"error: expected one value per example"),
        (lambda z, y: (z.argmax(1) != y).double() * 100, r"errors in \[0, 1\]"),
        (lambda z, y: z.mean().sigmoid().expand(len(y)), "depend on the other examples"),
    ],
)
def test_what_is_no_error_of_each_example_is_refused(module, x, error, message):
    with pytest.raises(im.InputError, match=message):
        im.Objective(module, data=(x, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])), error=error)


def test_an_ignored_label_of_a_loss_of_torch_is_its_own(module, x):
    y = torch.where(labels() == -100, 255, labels())
    with pytest.raises(im.InputError, match=r"write nn.CrossEntropyLoss\(ignore_index=255\)"):
        im.Objective(module, nn.CrossEntropyLoss(), (x, y), ignore_index=255)
    ours = im.Objective(module, nn.CrossEntropyLoss(ignore_index=255), (x, y))
    params = random_params(module, 1)
    assert ours.measure(params) == pytest.approx(im.Objective(module, data=(x, labels())).measure(params))
