import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import isthmus as im
from isthmus.certify.bounds import unsure
from isthmus.certify.forms import Form
from isthmus.objective.losses import wrong_class
from isthmus.params import cast
from tests.problems import blobs, perceptron, random_params, small_convnet, tied_and_normed
from tests.slow_twins import loss_one_by_one


@pytest.fixture
def module():
    return perceptron([5, 8, 4]).double()


@pytest.fixture
def data():
    return blobs(23, (5,), 4)


def test_its_line_counts_parameters_once():
    """Neither running statistics nor tensors under a second name are parameters."""
    objective, points, own = tied_and_normed()
    assert repr(objective).endswith(f" {sum(points[0][k].numel() for k in own)} parameters)")


def test_values_agree_with_one_example_at_a_time(module, data):
    params = random_params(module, 1)
    objective = im.Objective(module, data=data)
    assert objective.loss(params) == pytest.approx(loss_one_by_one(module, params, *data), rel=1e-13)
    wrong = (objective.outputs(params).argmax(1) != data[1]).double().mean()
    assert objective.error(params) == float(wrong)
    assert objective.losses(params).shape == (23,)
    assert float(objective.losses(params).mean()) == pytest.approx(objective.loss(params))


@pytest.mark.parametrize("memory", [1, 2000, 10_000, 1 << 30])
def test_the_answer_does_not_depend_on_the_chunk_size(module, data, memory):
    params = random_params(module, 1)
    objective = im.Objective(module, data=data, memory=memory)
    assert objective.chunk == (1 if memory == 1 else objective.chunk)
    assert objective.loss(params) == pytest.approx(im.Objective(module, data=data).loss(params), rel=1e-13)


def test_a_larger_memory_gives_larger_chunks(module, data):
    chunks = [im.Objective(module, data=data, memory=m).chunk for m in (1, 2000, 1 << 30)]
    assert chunks[0] == 1 < chunks[1] < chunks[2] == 23


def test_mse_is_torchs(data):
    module = perceptron([5, 6, 2]).double()
    x, y = data[0], torch.stack([data[0].sum(1), data[0].prod(1)], 1)
    params = random_params(module, 1)
    objective = im.Objective(module, "mse", (x, y))
    assert objective.loss(params) == pytest.approx(float(F.mse_loss(objective.outputs(params), y)))
    assert objective.error(params) != objective.error(params), "no error is defined for regression"


def test_a_callable_loss_declares_its_convexity(module, data):
    def hinge(outputs, y):
        return (1 - outputs.gather(1, y[:, None])[:, 0]).clamp(min=0)

    params = random_params(module, 1)
    objective = im.Objective(module, hinge, data, convex=True)
    assert objective.convex
    assert not im.Objective(module, hinge, data).convex
    assert objective.loss(params) == pytest.approx(float(hinge(objective.outputs(params), data[1]).mean()))
    with pytest.raises(im.InputError, match=r"one value per example, shape \(4,\), got \(\)"):
        im.Objective(module, lambda outputs, y: outputs.sum(), data)


@pytest.mark.parametrize(("penalty", "norm"), [(im.Ridge(0.1), 2), (im.L1(0.1), 1)])
def test_penalties_count_every_parameter_once(module, data, penalty, norm):
    params = random_params(module, 1)
    plain, objective = im.Objective(module, data=data), im.Objective(module, data=data, penalty=penalty)
    extra = 0.1 * sum(float(v.abs().pow(norm).sum()) for v in params.values())
    assert objective.loss(params) == pytest.approx(plain.loss(params) + extra)
    limited = im.Objective(module, data=data, penalty=type(penalty)(0.1, ("0.weight",)))
    assert limited.penalty_of(params) == pytest.approx(0.1 * float(params["0.weight"].abs().pow(norm).sum()))


def test_buffers_are_not_penalised():
    module = small_convnet().double().eval()
    x, y = blobs(6, (1, 8, 8), 4)
    params = random_params(module, 1)
    objective = im.Objective(module, data=(x, y), penalty=im.Ridge(1.0))
    names = [k for k, _ in module.named_parameters()]
    assert objective.penalty_of(params) == pytest.approx(sum(float(params[k].square().sum()) for k in names))


def test_a_loader_is_read_like_tensors(module, data):
    params = random_params(module, 1)
    loader = DataLoader(TensorDataset(*data), batch_size=5)
    assert im.Objective(module, data=loader).loss(params) == im.Objective(module, data=data).loss(params)


def test_loaders_whose_passes_differ_are_refused(module, data):
    class Noisy(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + torch.rand(1).double(), y

    with pytest.raises(im.InputError, match="same examples on every pass"):
        im.Objective(module, data=DataLoader(Noisy(*data), batch_size=5))
    with pytest.raises(im.InputError, match="can be read twice"):
        im.Objective(module, data=iter(DataLoader(TensorDataset(*data))))  # type: ignore[arg-type]


def test_several_inputs_by_position_and_by_name(data):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 4).double()

        def forward(self, left, right):
            return self.layer(left - right)

    module, (x, y) = Two(), data
    params = random_params(module, 1)
    by_position = im.Objective(module, data=((x, x * 0.5), y))
    by_name = im.Objective(module, data=({"right": x * 0.5, "left": x}, y))
    assert by_position.loss(params) == by_name.loss(params)


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(8)])
def test_training_mode_is_refused_with_the_modules_name(part, data):
    module = nn.Sequential(nn.Linear(5, 8), part, nn.Linear(8, 4))
    with pytest.raises(im.UnsupportedError, match=r"module '1' .*training mode.*call module.eval\(\)"):
        im.Objective(module, data=data)
    im.Objective(module.eval(), data=data)


def test_randomness_and_dependence_on_the_batch_are_found(data):
    class Random(nn.Linear):
        def forward(self, input):
            return super().forward(F.dropout(input, 0.5))

    class Centred(nn.Linear):
        def forward(self, input):
            return super().forward(input - input.mean(0))

    with pytest.raises(im.UnsupportedError, match="two passes over the same data differ"):
        im.Objective(Random(5, 4), data=data)
    with pytest.raises(im.UnsupportedError, match="depends on the rest of its batch"):
        im.Objective(Centred(5, 4), data=data)


def test_the_module_is_never_written_to_and_later_changes_do_not_matter(data):
    module = small_convnet().double().eval()
    x, y = blobs(6, (1, 8, 8), 4)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    objective = im.Objective(module, data=(x, y))
    params = random_params(module, 1)
    value = objective.loss(params)
    assert objective.structure.groups
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not module.training
    module.train().float()
    assert objective.loss(params) == value


def test_buffers_outside_the_state_dict_are_kept(data):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 4)
            self.register_buffer("scale", torch.tensor([2.0, 1.0, 1.0, 1.0]), persistent=False)

        def forward(self, x):
            return self.layer(x) * self.scale

    module = Scaled().double()
    objective = im.Objective(module, data=data)
    params = random_params(module, 1)
    want = F.linear(data[0], params["layer.weight"], params["layer.bias"]) * torch.tensor([2.0, 1, 1, 1])
    torch.testing.assert_close(objective.outputs(params), want)
    torch.testing.assert_close(objective.cast(torch.float32).outputs(cast(params, torch.float32)), want.float())


def test_tied_parameters_must_agree_and_share_one_tensor(data):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x).relu())

    module, x, y = Tied().double(), data[0], data[1]
    objective = im.Objective(module, data=(x, y), penalty=im.Ridge(1.0))
    w = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    checked = objective.check({"one.weight": w, "two.weight": w.clone()})
    assert checked["one.weight"] is checked["two.weight"]
    torch.testing.assert_close(objective.outputs(checked), (x @ w.T).relu() @ w.T)  # under both names
    assert objective.penalty_of(checked) == pytest.approx(float(w.square().sum()))
    with pytest.raises(im.InputError, match=r"'two.weight'.*tied to, 'one.weight'"):
        objective.check({"one.weight": w, "two.weight": w + 1})


def test_precision_follows_data_and_module_and_can_be_chosen(data):
    x, y = data
    assert im.Objective(perceptron([5, 4]), data=(x.float(), y)).dtype is torch.float32
    assert im.Objective(perceptron([5, 4]), data=(x, y)).dtype is torch.float64
    objective = im.Objective(perceptron([5, 4]), data=(x.float(), y))
    narrow = random_params(perceptron([5, 4]), 1, torch.float32)
    assert objective.cast(torch.float64).loss(narrow) == pytest.approx(objective.loss(narrow), rel=1e-5)
    with pytest.raises(im.InputError, match=r"expected torch.float32.*got torch.float64; write objective.cast"):
        objective.loss(cast(narrow, torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: {"data": None}, "a pair of tensors"),
        (lambda x, y: {"data": (x[:0], y[:0])}, "at least one example"),
        (lambda x, y: {"data": (x[:5], y)}, "23 examples in every tensor, got 5"),
        (lambda x, y: {"data": (x / 0, y)}, "NaN or infinite"),
        (lambda x, y: {"data": (x, y + 1)}, "labels from 0 to 3, got 1 to 4"),
        (lambda x, y: {"data": (x, y - 100)}, "labels from 0 to 3, got -99 to -97"),
        (lambda x, y: {"data": (x, y.double())}, "integer labels of shape"),
        (lambda x, y: {"data": (x[:, :3], y)}, "examples that Sequential accepts"),
        (lambda x, y: {"data": (x, y), "loss": "rmse"}, "one of .*'cross_entropy', .*'mse'"),
        (lambda x, y: {"data": (x, y.double()), "loss": "mse"}, "the shape of the outputs"),
        (lambda x, y: {"data": (x, y), "memory": 0}, "positive number of bytes"),
        (lambda x, y: {"data": (x, y), "dtype": torch.int64}, "floating-point dtype"),
        (lambda x, y: {"data": (x, y), "module": "net"}, "torch.nn.Module, got str"),
    ],
)
def test_misuse_is_refused_with_a_clear_line(module, data, change, message):
    arguments = {"module": module} | change(*data)
    with pytest.raises(im.InputError, match=message):
        im.Objective(**arguments)


def test_other_data_and_subsets_share_the_module(module, data):
    params = random_params(module, 1)
    objective = im.Objective(module, data=data)
    few = objective.subset(7)
    assert few.num_examples == 7
    assert few.loss(params) == pytest.approx(float(objective.losses(params)[:7].mean()))
    with pytest.raises(im.InputError, match="1 to 23"):
        objective.subset(24)
    with pytest.raises(im.InputError, match="labels from 0 to 3"):
        objective.on((data[0], data[1] + 1))


def test_a_hand_written_structure_is_verified(module, data):
    index = torch.arange(8)[:, None]
    good = [
        im.Member("0.weight", 0, "in", index),
        im.Member("0.bias", 0, "in", index),
        im.Member("2.weight", 1, "out", index),
    ]
    shapes = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    objective = im.Objective(module, data=data, structure=im.Structure((im.Group("hidden", 8, tuple(good)),), shapes))
    assert objective.structure.groups[0].name == "hidden"
    missing = im.Structure((im.Group("hidden", 8, tuple(good[:2])),), shapes)
    with pytest.raises(im.IsthmusError, match="hidden"):
        _ = im.Objective(module, data=data, structure=missing).structure


def test_gradients_of_batches_reach_the_parameters(module, data):
    objective = im.Objective(module, data=data, penalty=im.Ridge(0.01))
    params = {k: v.requires_grad_() for k, v in random_params(module, 1).items()}
    loss = objective.batch_loss(params, torch.arange(23))
    assert float(loss.detach()) == pytest.approx(objective.loss(params))
    loss.backward()
    assert all(v.grad is not None and bool(v.grad.abs().sum() > 0) for v in params.values())


def test_a_layer_used_twice_has_a_graph(data):
    shared = nn.PReLU()
    module = nn.Sequential(nn.Linear(5, 6), shared, nn.Linear(6, 6), shared, nn.Linear(6, 4)).double()
    objective = im.Objective(module, data=data)
    params = dict(random_params(module, 1)) | dict.fromkeys(("1.weight", "3.weight"), torch.tensor([0.3]).double())
    torch.testing.assert_close(objective.program.run(objective.check(params), data[0]), objective.outputs(params))


# -- sequences: where the classes are


class PerPosition(nn.Module):
    """Outputs [n, T, classes] of integer sequences [n, T]; with `torchs` [n, classes, T]."""

    def __init__(self, classes, torchs=False):
        super().__init__()
        self.embed = nn.Embedding(classes, 6)
        self.out = nn.Linear(6, classes)
        self.torchs = torchs

    def forward(self, x):
        z = self.out(self.embed(x))
        return z.transpose(1, 2) if self.torchs else z


def sequence_loss(outputs, y):
    return F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").unflatten(0, y.shape).mean(1)


def sequences(classes, length=5, n=7):
    x = torch.randint(classes, (n, length), generator=torch.Generator().manual_seed(0))
    return x, (x + (x == 1)) % classes


def test_classes_may_stand_on_the_last_axis_of_a_callable_loss():
    x, y = sequences(4)
    last, first = PerPosition(4).double(), PerPosition(4, torchs=True).double()
    params = random_params(last, 3)
    ours = im.Objective(last, sequence_loss, (x, y), convex=True)
    torchs = im.Objective(first, data=(x, y))
    logits = F.linear(params["embed.weight"][x], params["out.weight"], params["out.bias"])
    want = (logits.argmax(2) != y).double().mean()
    assert 0 < want < 1
    assert ours.error(params) == pytest.approx(float(want), abs=1e-12)
    assert ours.loss(params) == pytest.approx(torchs.loss(params), abs=1e-12)
    assert torchs.error(params) == ours.error(params)
    assert im.Objective(first, lambda z, y: sequence_loss(z.mT, y), (x, y)).error(params) == ours.error(params)
    a, b = params, random_params(last, 4)
    line = im.connect(ours, a, b).path
    measured = im.profile(ours, line, 5)
    torch.testing.assert_close(
        torch.as_tensor(measured.error), torch.tensor([ours.error(line.at(t)) for t in measured.t.tolist()]).double()
    )


def test_labels_that_fit_two_axes_or_none_need_an_error_function():
    x, y = sequences(5)  # as many classes as positions
    module = PerPosition(5).double()
    params = random_params(module, 3)
    with pytest.raises(im.InputError, match=r"class_axis: expected .* on two, got None; write .* or error="):
        im.Objective(module, sequence_loss, (x, y))
    z = F.linear(params["embed.weight"][x], params["out.weight"], params["out.bias"])
    wrong = [(z.argmax(axis) != y).double().mean().item() for axis in (1, 2)]
    assert wrong[0] != wrong[1]
    for error, want in zip((wrong_class, lambda z, y: wrong_class(z.movedim(-1, 1), y)), wrong, strict=True):
        given = im.Objective(module, sequence_loss, (x, y), error=error)
        assert given.error(params) == pytest.approx(want, abs=1e-12)
    for axis, value in zip((1, -1), wrong, strict=True):
        given = im.Objective(module, sequence_loss, (x, y), class_axis=axis)
        assert given.error(params) == pytest.approx(value, abs=1e-12)

    def of_the_first(outputs, y):
        return F.cross_entropy(outputs[:, 0], y[:, 0], reduction="none")

    x, y = sequences(4)
    with pytest.raises(im.InputError, match=r"labels of shape \(n, 4\) or \(n, 5\) .*error="):
        im.Objective(PerPosition(4).double(), of_the_first, (x, y[:, :3]))


def test_the_certified_error_rate_follows_the_axis_of_the_classes():
    x, y = sequences(4, n=40)
    last, first = PerPosition(4).double(), PerPosition(4, torchs=True).double()
    ours, torchs = im.Objective(last, sequence_loss, (x, y)), im.Objective(first, data=(x, y))
    z = ours.outputs(random_params(last, 3))
    radius = 0.05 * z.abs()
    marks = unsure(ours, Form(z, None, radius.clone()), y)
    assert 0 < float(marks.mean()) < 1
    assert torch.equal(marks, unsure(torchs, Form(z.mT.contiguous(), None, radius.mT.contiguous()), y))
