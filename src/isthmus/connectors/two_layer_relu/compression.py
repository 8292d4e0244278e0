"""How well a hidden layer can be compressed: delta_W(n, alpha; m) of Freeman & Bruna 2017, equation 8.

delta_W(n, alpha; m) = min over gamma with at most n units, over rows w~_i within the angle alpha of w_i, of the loss of
the last layer gamma on the features of W~, plus kappa ||gamma||_1. That a small angle changes little is Proposition 2.3
(``rectified.rectified_product``). The choice of units is a hard problem; what is computed is an upper bound by a stated
algorithm (``compress``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.connectors.two_layer_relu.readout import Readout, Solution
from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.objective.losses import L1
from isthmus.params import Params
from isthmus.program.export import Node
from isthmus.structure.activations import reads_flat
from isthmus.structure.chain import RESHAPE, Chain, Weights, chain_of
from isthmus.training.memory import Memory, State, recalled


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    """A hidden layer with its last layer: rows W [m, w] (weights and bias), A [O, m, k], b [O], and their value.

    `gap`: how far the last layer can be from the best one for these rows and units; None where not known.
    """

    W: Tensor
    A: Tensor
    b: Tensor
    value: float
    gap: float | None = None

    @property
    def live(self) -> Tensor:
        """The units with outgoing weights, ascending."""
        return self.A.abs().sum((0, 2)).nonzero().flatten()


class TwoLayers:
    """An objective whose network is x -> ReLU of an affine layer -> affine layer, read for Theorem 2.4; float64.

    Between the layers there may be pooling and a flatten: a unit is then a channel with k features. The penalty, if
    any, is l1 on the last layer's weight (and perhaps its bias). Errors: ``UnsupportedError`` and ``InputError`` name
    what else there is.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective.cast(torch.float64)
        self.chain = two_layer_chain(self.objective)
        self.kappa, self.bias = _penalty_of(self.objective, self.chain)
        x, self.y = single(self.objective.data[0]), self.objective.data[1]
        self.x = x.flatten(1) if reads_flat(self.chain.layer(1)) else x
        self.squared = self.objective.named_loss == "mse"

    @property
    def m(self) -> int:
        """The number of hidden units."""
        return self.chain.widths[1]

    def read(self, params: Params) -> HiddenLayer:
        """The layers of `params`, with the value of the objective."""
        theta = self.chain.read(params)
        W = torch.cat([theta.A[1].flatten(1), theta.b[1]], 1)
        b = theta.b[2][:, 0] if theta.b[2].numel() else theta.A[2].new_zeros(len(theta.A[2]))
        return HiddenLayer(W, theta.A[2], b, self.objective.loss(params))

    def weights(self, layer: HiddenLayer, like: Params) -> Weights:
        """The layers as weights of the chain; `like` gives the kernel's shape."""
        columns = like[self.chain.layer(1).weight][0].numel()
        b = {1: layer.W[:, columns:], 2: layer.b[:, None] if self.chain.layer(2).vectors else layer.b[:, None][:, :0]}
        return Weights({1: layer.W[:, :columns].reshape(len(layer.W), self.chain.widths[0], -1), 2: layer.A}, b)

    def extended(self) -> Tensor:
        """The inputs [N, w] that rows with their biases multiply, for a linear first layer."""
        ones = [self.x.new_ones(len(self.x), 1)] if self.chain.layer(1).vectors else []
        return torch.cat([self.x, *ones], 1)

    def features(self, W: Tensor, like: Params) -> Tensor:
        """The features of the hidden layer with rows W on all examples, [N, m k]; carries gradients to W."""
        return torch.cat([self.hidden(W, x, like) for x in self.x.split(self.objective.chunk)]).flatten(1)

    def hidden(self, W: Tensor, x: Tensor, like: Params) -> Tensor:
        """The features of some examples; `like` gives the kernel's shape."""
        names = (self.chain.layer(1).weight, *self.chain.layer(1).vectors)
        columns = like[names[0]][0].numel()
        tensors = {names[0]: W[:, :columns].reshape(len(W), *like[names[0]].shape[1:])}
        if names[1:]:
            tensors[names[1]] = W[:, -1]
        return self.chain.through(tensors, x, 1)

    def readout(self, W: Tensor, like: Params) -> Readout:
        """The problem of the last layer on these rows."""
        with torch.no_grad():
            Z = self.features(W, like)
        losses = self.objective.example_losses
        return Readout(Z, self.y, losses, self.kappa, self.bias, squared=self.squared, outputs=self.chain.widths[2])

    def recalled(self, memory: Memory, compute: Callable[[], HiddenLayer]) -> HiddenLayer:
        """The layer that `compute` gives, or gave before this work was killed."""

        def packed() -> State:
            layer = compute()
            return {"W": layer.W, "A": layer.A, "b": layer.b}, {"value": layer.value, "gap": layer.gap}

        tensors, values = recalled(memory, packed)
        return HiddenLayer(**{k: v.to(self.x.device) for k, v in tensors.items()}, **values)

    def solved(
        self, readout: Readout, layer: HiddenLayer, units: Tensor | None = None, steps: int | None = None
    ) -> HiddenLayer:
        """`layer` with the best last layer on its rows, limited to `units` (bool [m]; default all)."""
        k = layer.A.shape[2]
        columns = None if units is None else units.repeat_interleave(k)
        found: Solution = readout.solve((layer.A.flatten(1), layer.b), columns, steps=steps)
        return HiddenLayer(layer.W, found.A.view(layer.A.shape), found.b, found.value, found.gap)


def two_layer_chain(objective: Objective) -> Chain:
    """The chain of a two-layer ReLU network; anything else is refused by name."""
    chain = chain_of(objective.program, objective.structure)
    if chain.L != 2:
        raise UnsupportedError("the network", f"Theorem 2.4 is about one hidden layer, and this has {chain.L - 1}")
    first, second = chain.layers
    for node in (*first.before, *first.behind):
        if not (node.kind in RESHAPE if node in first.before else _fits(node)):
            raise UnsupportedError(node.where or node.op, "Theorem 2.4 is about ReLU networks")
    if all(n.base != "relu" for n in first.behind):
        raise UnsupportedError("the network", "it has no ReLU", "use im.DeepLinear()")
    if second.nodes[-1].base != "linear":
        raise UnsupportedError(second.nodes[-1].where or second.nodes[-1].op, "the last layer must be nn.Linear")
    return chain


def _fits(node: Node) -> bool:
    """Whether an operation behind the hidden layer scales with the features of a unit: ReLU, pooling, flattening."""
    return node.base == "relu" or (node.about.homogeneous and node.kind != "pointwise")


def _penalty_of(objective: Objective, chain: Chain) -> tuple[float, str]:
    """kappa, and what becomes of the output bias: "none", "free" or "penalised"."""
    weight, biases = chain.layer(2).weight, chain.layer(2).vectors
    penalty = objective.penalty
    free = "free" if biases else "none"
    if penalty is None or penalty.kappa == 0:
        return 0.0, free
    names = set(objective.parameter_names if penalty.names is None else penalty.names)
    if not isinstance(penalty, L1) or weight not in names or not names <= {weight, *biases}:
        raise InputError(
            "penalty",
            expected="l1 on the second layer, as the theorem has it, or none",
            got=repr(penalty),
            instead=f"im.L1(kappa, names=({weight!r},))",
        )
    return penalty.kappa, "penalised" if biases and names != {weight} else free


@dataclass(frozen=True)
class Compression:
    """How ``compress`` works: rounds of moving rows, steps in each, and the largest part of units dropped at a time.

    `between`: steps of the last layer between two drops, for losses other than the squared one.
    """

    rounds: int = 40
    steps: int = 10
    part: float = 0.1
    between: int = 50


def compress(
    problem: TwoLayers, layer: HiddenLayer, keep: int, alpha: float, like: Params, how: Compression | None = None
) -> HiddenLayer:
    """An upper bound on delta_W(keep, alpha; m), with the rows and the last layer that reach it.

    `layer` is the best last layer on all units (``TwoLayers.solved``). Where it uses at most `keep` units it is the
    answer for alpha = 0, to its gap. Else units are dropped one by one (at most a tenth of those that are too many at a
    time), those first whose removal costs least when the others adapt (the squared outputs that the other features
    cannot replace), and the last layer is solved for again (for other losses than the squared one by a few steps only,
    until the last drop). Then, for alpha > 0, the kept rows move by projected
    gradient steps within the angle, taken only where the value falls, with the last layer solved for after each round.
    """
    how = how or Compression()
    readout = problem.readout(layer.W, like)
    if len(layer.live) > keep:
        now, units = layer, _mask(problem.m, layer.live)
        while (excess := len(now.live) - keep) > 0:
            units = _mask(problem.m, now.live)
            cost = _cost_of_removal(readout, now)
            drop = cost.argsort()[: max(1, int(how.part * excess))]
            units[now.live[drop]] = False
            now = problem.solved(readout, now, units, None if problem.squared else how.between)
        layer = now if problem.squared else problem.solved(readout, now, units)
    return layer if alpha == 0 else _move(problem, layer, alpha, like, how)


def _cost_of_removal(readout: Readout, layer: HiddenLayer) -> Tensor:
    """For each live unit the mean square of its part in the outputs that other live features cannot replace."""
    live, k = layer.live, layer.A.shape[2]
    Z = readout.Z.view(len(readout.Z), -1, k)[:, live].flatten(1)
    if readout.bias == "free":
        Z = Z - Z.mean(0)
    G = Z.T @ Z / len(Z)
    H = torch.linalg.inv(G + 1e-10 * G.diagonal().mean().clamp_min(1e-300) * torch.eye(len(G)).to(G))
    costs = []
    for i in range(len(live)):
        block = H[i * k : (i + 1) * k, i * k : (i + 1) * k]
        A = layer.A[:, live[i]]
        costs.append((A @ torch.linalg.pinv(block, hermitian=True) * A).sum())
    return torch.stack(costs)


def _move(problem: TwoLayers, layer: HiddenLayer, alpha: float, like: Params, how: Compression) -> HiddenLayer:
    """The live rows moved within the angle alpha, so that the value falls."""
    live, home, size = layer.live, layer.W, 1.0
    for _ in range(how.rounds):
        W, A, b, before = layer.W, layer.A, layer.b, layer.value
        penalty = before - float(problem.objective.example_losses(*_outputs(problem, W, A, b, like)).mean())
        value = before
        for _ in range(how.steps):
            leaf = W.detach().requires_grad_()
            loss = problem.objective.example_losses(*_outputs(problem, leaf, A, b, like)).mean()
            (gradient,) = torch.autograd.grad(loss, leaf)
            gradient = _scaled(gradient, W)
            while size > 1e-6:
                new = W.clone()
                new[live] = cap(W[live] - size * gradient[live], home[live], alpha)
                reached = float(problem.objective.example_losses(*_outputs(problem, new, A, b, like)).mean()) + penalty
                if reached < value:
                    W, value, size = new, reached, 1.5 * size
                    break
                size /= 2
        moved = problem.solved(problem.readout(W, like), HiddenLayer(W, A, b, value), _mask(problem.m, live))
        if moved.value >= before * (1 - 1e-9):
            break
        layer, size = moved, max(size, 1e-2)
    return layer


def _mask(m: int, units: Tensor) -> Tensor:
    """Which of m units are among `units`."""
    return units.new_zeros(m, dtype=torch.bool).index_fill(0, units, True)


def _scaled(gradient: Tensor, W: Tensor) -> Tensor:
    """The gradient of each row at the size of the row: a step of 1 turns it by about 45 degrees at most."""
    return gradient * (W.norm(dim=1).max() / gradient.norm(dim=1).max().clamp_min(1e-300))


def _outputs(problem: TwoLayers, W: Tensor, A: Tensor, b: Tensor, like: Params) -> tuple[Tensor, Tensor]:
    with torch.set_grad_enabled(W.requires_grad):
        return problem.features(W, like) @ A.flatten(1).T + b, problem.y


def cap(V: Tensor, W: Tensor, alpha: float) -> Tensor:
    """The rows of V turned to within the angle `alpha` of the rows of W, and given their lengths.

    >>> cap(torch.tensor([[0.0, 5.0]]), torch.tensor([[2.0, 0.0]]), torch.pi / 4)
    tensor([[1.4142, 1.4142]])
    """
    length = W.norm(dim=1, keepdim=True)
    w = W / length.clamp_min(1e-300)
    along = (V * w).sum(1, keepdim=True)
    across = V - along * w
    height = across.norm(dim=1, keepdim=True)
    angle = torch.atan2(height, along).clamp_max(alpha)
    side = across / height.clamp_min(1e-300)
    return length * (angle.cos() * w + angle.sin() * side)
