"""Any batch and any output: the loss is that of a loop over the user's own batches and the user's own module."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import isthmus as im
from isthmus.structure.verify import verify

G = torch.Generator().manual_seed(0)
N = 11
LEFT, RIGHT = torch.randn(N, 3, generator=G, dtype=torch.float64), torch.randn(N, 3, generator=G, dtype=torch.float64)
MASK, Y = torch.rand(N, 3, generator=G) > 0.3, torch.randint(0, 4, (N,), generator=G)

Named = namedtuple("Named", "hidden scores")


@dataclass
class Output:
    """What Hugging Face's models return, as far as it matters."""

    loss: Tensor | None
    logits: Tensor
    hidden: Tensor


OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str | int | None]] = {
    "a tensor": (lambda z, h: z, None),
    "a tuple": (lambda z, h: (z, h), None),
    "the second of a tuple": (lambda z, h: (h, z), 1),
    "a dict": (lambda z, h: {"h": h, "logits": z}, None),
    "one in a dict": (lambda z, h: {"z": z, "note": "text"}, None),
    "a named one": (lambda z, h: {"h": h, "z": z}, "z"),
    "a dataclass": (lambda z, h: Output(None, z, h), None),
    "a named tuple": (Named, "hidden"),
}


class Towers(nn.Module):
    """Two inputs and a mask; counts its calls, has a hook and gives what the test wants."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any], step: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out, self.give, self.calls, self.step = nn.Linear(3, 5), nn.Linear(5, 4), give, 2, step
        self.double()

    def forward(self, left: Tensor, right: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        assert labels is None, "the labels are not for the module"
        h = torch.relu(self.hidden(left) * self.calls - self.hidden(right if mask is None else right * mask))
        self.calls += self.step
        return self.give(self.out(h), h)


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"left": LEFT[i], "right": RIGHT[i], "mask": MASK[i], "label": int(Y[i])}


def dicts(key: str) -> list[dict[str, Tensor]]:
    parts = [slice(0, 4), slice(4, 8), slice(8, N)]
    return [{"left": LEFT[p], "right": RIGHT[p], "mask": MASK[p], key: Y[p]} for p in parts]


class Pack:
    """A batch that is nothing of torch's."""

    def __init__(self, x: tuple[Tensor, Tensor, Tensor], y: Tensor) -> None:
        self.x, self.y, self.task = x, y, "a"


def whole(module: nn.Module, batch: Any) -> Any:
    return module(batch["left"], batch["right"], mask=batch["mask"])


BATCHES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "tensors": (lambda: ((LEFT, RIGHT, MASK), Y), {}),
    "arrays": (lambda: ((LEFT.numpy(), RIGHT.numpy(), MASK.numpy()), Y.numpy()), {}),
    "a data set": (lambda: TensorDataset(LEFT, RIGHT, MASK, Y), {}),
    "a loader of tuples": (lambda: DataLoader(TensorDataset(LEFT, RIGHT, MASK, Y), batch_size=4), {}),
    "targets first": (lambda: DataLoader(TensorDataset(Y, LEFT, RIGHT, MASK), batch_size=4), {"targets": 0}),
    "rows of dicts": (Rows, {}),
    "a loader of dicts": (lambda: DataLoader(Rows(), batch_size=4, shuffle=True), {}),
    "labels of another name": (lambda: dicts("class"), {"targets": "class"}),
    "one dict": (lambda: {"mask": MASK, "right": RIGHT, "left": LEFT, "labels": Y}, {}),
    "a call of the batch": (lambda: dicts("y"), {"forward": whole}),
    "an attribute of objects": (
        lambda: [Pack((LEFT[:6], RIGHT[:6], MASK[:6]), Y[:6]), Pack((LEFT[6:], RIGHT[6:], MASK[6:]), Y[6:])],
        {"forward": lambda module, b: module(*b.x), "targets": "y"},
    ),
    "a call of objects": (
        lambda: [Pack((LEFT[:6], RIGHT[:6], MASK[:6]), Y[:6]), Pack((LEFT[6:], RIGHT[6:], MASK[6:]), Y[6:])],
        {"forward": lambda module, b: module(*b.x), "loss": lambda z, b: F.cross_entropy(z, b.y, reduction="none")},
    ),
}


def slow_loss(module: Towers) -> float:
    total = 0.0
    with torch.no_grad():
        for left, right, mask, y in zip(LEFT, RIGHT, MASK, Y, strict=True):
            h = torch.relu(2 * module.hidden(left) - module.hidden(right * mask))
            total += float(-module.out(h).log_softmax(0)[y])
    return total / N


def check(objective: im.Objective, module: Towers) -> None:
    params = {k: v.clone().requires_grad_() for k, v in module.state_dict().items()}
    assert objective.loss(module) == pytest.approx(slow_loss(module), rel=1e-12)
    assert list(objective.check(module)) == list(module.state_dict()), "names are the module's own"
    objective.batch_loss(params, torch.tensor([0, 3])).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in params.values() if p.grad is not None)
    assert module.calls == 2


@pytest.mark.parametrize(("make", "options"), BATCHES.values(), ids=BATCHES.keys())
def test_batches(make: Callable[[], Any], options: dict[str, Any]) -> None:
    module = Towers(OUTPUTS["a dataclass"][0])
    check(im.Objective(module, data=make(), **options), module)


@pytest.mark.parametrize(("give", "output"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_outputs(give: Callable[[Tensor, Tensor], Any], output: str | int | None) -> None:
    module = Towers(give)
    objective = im.Objective(module, data=((LEFT, RIGHT, MASK), Y), output=output)
    check(objective, module)
    for other in (
        pickle.loads(pickle.dumps(objective)) if output == "hidden" else objective.subset(N),
        copy.copy(objective),
    ):
        assert other.loss(module) == objective.loss(module)


def test_everything_above_sees_a_module_of_tensors() -> None:
    module = Towers(OUTPUTS["a dict"][0], step=0)
    objective = im.Objective(module, data=dicts("y"), forward=whole)
    assert [g.size for g in objective.structure.groups] == [5]
    verify(objective.structure, objective._materialised(), *objective._example)
    a = module.state_dict()
    path = im.Path.through([a, {k: 1.5 * v for k, v in a.items()}])
    measured = im.profile(objective, path, 3)
    plain = im.Objective(Towers(OUTPUTS["a tensor"][0], step=0), data=((LEFT, RIGHT, MASK), Y))
    assert measured.loss.tolist() == pytest.approx([plain.loss(path.at(t)) for t in (0, 0.5, 1)], rel=1e-12)
    assert im.certify(objective, path).bound >= measured.max
    assert "Towers" in repr(objective)
    with pytest.raises(im.InputError, match="alike"):
        objective.on([{"left": LEFT, "right": RIGHT, "y": Y}, {"left": LEFT, "y": Y}])


class Tired:
    """A loader that has fewer examples in each pass."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter([tuple(v[self.passes :] for v in (LEFT, RIGHT, MASK, Y))])


REFUSED = {
    "no such output": (lambda z, h: {"z": z}, {"output": "logit"}, r"output: expected one of \['z'\].*got 'logit'"),
    "several outputs": (lambda z, h: {"z": z, "h": h}, {}, r"output: expected one of .*write output='z'"),
    "a tensor with a name": (lambda z, h: z, {"output": "z"}, r"None: Towers returns one tensor"),
    "no tensor": (lambda z, h: {"z": None}, {}, r"Towers: its forward returns dict, without a tensor"),
    "no such target": (lambda z, h: z, {"targets": "labels"}, r"targets: expected one of the parts of a batch, 0 to 3"),
    "a batch for a named loss": (
        lambda z, h: z, {"forward": lambda module, b: module(*b[:3]), "data": [[LEFT]]}, r"targets: expected the name",
    ),
    "no such key": (
        lambda z, h: z, {"data": dicts("y"), "targets": "labels"}, "parts of a batch, 'left', 'right', 'mask', 'y', got"
    ),
    "no such attribute": (
        lambda z, h: z,
        {"data": [Pack((LEFT, RIGHT, MASK), Y)], "targets": "labels", "forward": lambda module, b: module(*b.x)},
        "parts of a batch, 'x', 'y', 'task', got 'labels'",
    ),
    "a batch without tensors": (
        lambda z, h: z, {"data": [["a", "b"]], "forward": lambda module, b: module(LEFT, RIGHT)},
        "data: expected batches with tensors in them",
    ),
    "inputs that are no tensors": (lambda z, h: z, {"data": [({}, Y)]}, "data: expected x as a tensor, a tuple or a"),
    "an empty loader": (lambda z, h: z, {"data": []}, "data: expected at least one batch, got an empty loader"),
    "targets that are words": (
        lambda z, h: z, {"data": [(LEFT, ["a"] * N)]}, "data: expected targets as one tensor per batch, got list of str"
    ),
    "a loader that gives less the second time": (
        lambda z, h: z, {"data": Tired()}, "data: .*a loader without random augmentation and with drop_last=False"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("give", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(give: Callable[[Tensor, Tensor], Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises((im.InputError, im.UnsupportedError), match=message):
        im.Objective(Towers(give), **{"data": TensorDataset(LEFT, RIGHT, MASK, Y), **options})


# -- losses


def scores(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


WEIGHT = (0.5, 1.0, 2.0, 0.0)
TEXT = torch.randint(0, 4, (N, 5), generator=G).where(torch.rand(N, 5, generator=G) > 0.4, -100).index_fill(
    1, torch.tensor([0, 1]), 3
)  # fmt: skip
SIGNS, UNIT = 2 * torch.randint(0, 2, (N, 4), generator=G) - 1, torch.rand(N, 4, generator=G).double()


def by_example(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(a[b != -100], b[b != -100]) for a, b in zip(z, y, strict=True)]).mean()


def weighted(z: Tensor, y: Tensor) -> Tensor:
    """Each text's mean, with the weights of its words; the texts weigh as their words do on average."""
    weight, rows = z.new_tensor(WEIGHT), [(a[b != -100], b[b != -100]) for a, b in zip(z, y, strict=True)]
    losses = [(weight[b] * F.cross_entropy(a, b, reduction="none")).mean() for a, b in rows]
    return torch.stack(losses).sum() / sum(weight[b].mean() for _, b in rows)


LOSSES: dict[str, tuple[Any, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]] = {
    "weight": (im.CrossEntropy(WEIGHT), scores(N, 4), Y, lambda z, y: F.cross_entropy(z, y, z.new_tensor(WEIGHT))),
    "smoothing": (
        im.CrossEntropy(label_smoothing=0.2), scores(N, 4), Y, lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2),
    ),
    "both, tokens": (
        im.CrossEntropy(WEIGHT, 0.2, mean="tokens"), scores(N, 5, 4), TEXT,
        lambda z, y: F.cross_entropy(z.movedim(-1, 1), y, z.new_tensor(WEIGHT), label_smoothing=0.2),
    ),
    "weight, examples": (im.CrossEntropy(WEIGHT), scores(N, 5, 4), TEXT, weighted),
    "examples": ("cross_entropy", scores(N, 5, 4), TEXT, by_example),
    "tokens": (im.CrossEntropy(mean="tokens"), scores(N, 5, 4), TEXT, lambda z, y: F.cross_entropy(z.mT, y)),
    "shift": (
        im.CrossEntropy(mean="tokens", shift=True), scores(N, 5, 4), TEXT,
        lambda z, y: F.cross_entropy(z[:, :-1].mT, y[:, 1:]),
    ),
    "bce_with_logits": ("bce_with_logits", scores(N, 4), UNIT, F.binary_cross_entropy_with_logits),
    "mse": ("mse", scores(N, 4), UNIT, F.mse_loss),
    "l1": ("l1", scores(N, 4), UNIT, F.l1_loss),
    "huber": ("huber", 3 * scores(N, 4), UNIT, F.huber_loss),
    "hinge": ("hinge", scores(N, 4), SIGNS, lambda z, y: F.hinge_embedding_loss(z * y, -torch.ones_like(z))),
    "hinge of classes": ("hinge", scores(N, 4), Y, F.multi_margin_loss),
    "nll": ("nll", scores(N, 4).log_softmax(1), Y, F.nll_loss),
    "kl": ("kl", scores(N, 4).log_softmax(1), UNIT, lambda z, y: F.kl_div(z, y, reduction="batchmean")),
    "MultiMargin": (nn.MultiMarginLoss(2, 0.5), scores(N, 4), Y, nn.MultiMarginLoss(2, 0.5)),
    "MultiMargin, sum": (nn.MultiMarginLoss(reduction="sum"), scores(N, 4), Y, nn.MultiMarginLoss(reduction="sum")),
}  # fmt: skip


class Table(nn.Module):
    """Gives a row of its table for each example."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(z)

    def forward(self, i: Tensor) -> Tensor:
        return self.table[i]


@pytest.mark.parametrize(("loss", "z", "y", "torchs"), LOSSES.values(), ids=LOSSES.keys())
def test_losses_are_torchs_on_the_whole_data_set(loss: Any, z: Tensor, y: Tensor, torchs: Callable) -> None:
    objective = im.Objective(Table(z), loss, {"i": torch.arange(N), "y": y})
    assert objective.loss({"table": z}) == pytest.approx(float(torchs(z, y)), rel=1e-12)
    assert objective.convex
    once = objective.cast(torch.float64).subset(N)
    assert once.loss({"table": z}) == objective.loss({"table": z}), "shifted once"
    said = objective.describe()
    assert im.objective.named.described(said) == loss if said["named"] else isinstance(loss, nn.Module)


def test_means_over_tokens_and_over_examples_differ() -> None:
    z = scores(N, 5, 4)
    tokens, examples = (
        im.Objective(Table(z), im.CrossEntropy(mean=m), (torch.arange(N), TEXT)).loss({"table": z})  # type: ignore[arg-type]
        for m in ("tokens", "examples")
    )
    assert abs(tokens - examples) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: im.CrossEntropy(weight=[-1.0]), "weight: expected finite numbers >= 0"),
        (lambda: im.CrossEntropy(label_smoothing=2), "label_smoothing: expected a number from 0 to 1"),
        (lambda: im.CrossEntropy(mean="token"), "mean: expected 'examples' or 'tokens'"),  # type: ignore[arg-type]
        (lambda: im.Objective(Table(scores(N, 4)), "hinge", (torch.arange(N), SIGNS.clamp(min=0))), "-1 and 1"),
        (lambda: im.Objective(Table(scores(N, 4)), "hinge", (torch.arange(N), TEXT)), "hinge, or class labels"),
        (
            lambda: im.Objective(Table(scores(N, 4)), nn.BCEWithLogitsLoss(), (torch.arange(N), SIGNS.double())),
            "0 to 1",
        ),
        (
            lambda: im.Objective(Table(scores(N, 4)), nn.BCEWithLogitsLoss(torch.ones(N, 4)), (torch.arange(N), UNIT)),
            "weights that do not depend on the example",
        ),
        (lambda: im.Objective(Table(scores(N)), "mse", (torch.arange(N), UNIT[:, :1])), r"write y\[:, 0\]"),
        (lambda: im.Objective(Table(scores(N, 4)), im.CrossEntropy(shift=True), (torch.arange(N), Y)), "for shift"),
        (lambda: im.Objective(Table(scores(N, 4)), nn.GaussianNLLLoss(), (torch.arange(N), Y)), "got GaussianNLLLoss"),  # type: ignore[arg-type]
    ],
)
def test_losses_that_cannot_be_meant(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(im.InputError, match=message):
        make()
