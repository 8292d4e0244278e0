"""A ReLU chain cut at its pre-activations, and the spectral norms of the Jacobians between them, matrix-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import tree_map

from isthmus.errors import InputError, UnsupportedError
from isthmus.params import Params
from isthmus.program.export import Node
from isthmus.structure.chain import RESHAPE, Chain


@dataclass(frozen=True, eq=False)
class Layered:
    """x^i = A_i phi(x^{i-1}) + b_i for i = 1..d, with phi(x^0) = x: a chain and one set of its weights.

    phi is what stands between two affine layers: ReLU, pooling over windows that do not overlap, flattening. It is
    positively homogeneous and 1-Lipschitz, which is all that Definitions 2 to 4 of Kuditipudi et al. and their
    proofs use. BatchNorm in evaluation mode directly after an affine layer is part of A_i and b_i; anything else
    is refused by name.
    """

    params: Params
    widths: tuple[int, ...]
    bare: Chain
    affine: Chain
    between: Chain

    @classmethod
    def of(cls, chain: Chain, params: Mapping[str, Tensor]) -> Layered:
        """Cut the chain, or refuse an operation for which the definitions have no meaning."""
        parts = [_cut(layer.nodes, l == chain.L) for l, layer in enumerate(chain.layers, start=1)]

        def only(k: int) -> Chain:
            layers = (replace(layer, nodes=part[k]) for layer, part in zip(chain.layers, parts, strict=True))
            return replace(chain, layers=tuple(layers))

        return cls(dict(params), chain.widths, only(0), only(1), only(2))

    @property
    def d(self) -> int:
        """The number of layers."""
        return self.affine.L

    def apply(self, h: Tensor, i: int) -> Tensor:
        """x^i from h = phi(x^{i-1})."""
        return self.affine.through(self.params, h, i)

    def phi(self, x: Tensor, i: int) -> Tensor:
        """phi(x^i), which layer i + 1 reads (before flattening, so that units stay on axis 1)."""
        return self.between.through(self.params, x, i)

    def onward(self, z: Tensor, i: int, last: int) -> tuple[Tensor, ...]:
        """M^{i,j}(z) for j = i+1 .. last."""
        out = []
        for j in range(i + 1, last + 1):
            z = self.apply(self.phi(z, j - 1), j)
            out.append(z)
        return tuple(out)

    def column_squares(self, h: Tensor, i: int) -> Tensor:
        """The squared norms of the columns of A_i, summed over the entries that belong to one unit of layer i - 1.

        A convolution counts as the linear map on inputs of the shape of `h` (one example), borders included. The
        sum over all units is the squared Frobenius norm of A_i.
        """
        layer = self.bare.layer(i)
        weight = self.params[layer.weight]
        scale = self._norm_scale(i, weight).reshape(-1, *(1,) * (weight.dim() - 1))
        squared: Params = {n: torch.zeros_like(self.params[n]) for n in layer.vectors}
        squared[layer.weight] = (weight * scale).square()
        ones = torch.ones_like(h[:1])
        out, pull = _vjp(lambda v: self.bare.through(squared, v, i), ones)
        per_entry = pull(torch.ones_like(out))[0]
        return per_entry.reshape(self.widths[i - 1], -1).sum(1)

    def _norm_scale(self, i: int, weight: Tensor) -> Tensor:
        """The factor that BatchNorm multiplies each unit of layer i with; 1 where there is none."""
        scale = weight.new_ones(len(weight))
        for node in self.affine.layer(i).nodes:
            if node.kind == "norm":
                named = node.named()
                scale = scale / (self.params[named["running_var"].name] + named["eps"]).sqrt()
                scale = scale * self.params[named["weight"].name] if named["weight"] is not None else scale
        return scale


def _cut(nodes: tuple[Node, ...], last: bool) -> tuple[tuple[Node, ...], tuple[Node, ...], tuple[Node, ...]]:
    """One layer's operations as (affine without BatchNorm, affine, phi)."""
    at = next(k for k, n in enumerate(nodes) if n.kind == "affine")
    before, rest = nodes[: at + 1], nodes[at + 1 :]
    for node in before[:-1]:
        if node.kind not in (*RESHAPE, "identity"):
            raise _refusal(node, "it changes the input of the network before its first layer")
    norms = list(takewhile(lambda n: n.kind == "norm", rest))
    rest = rest[len(norms) :]
    for node in rest:
        _check_phi(node)
    if not last and not any(n.base == "relu" for n in rest):
        raise _refusal(nodes[at], "no ReLU follows this layer")
    return before, (*before, *norms), rest


def _check_phi(node: Node) -> None:
    if node.kind == "norm":
        raise _refusal(node, "BatchNorm after the activation is not positively homogeneous")
    if node.base != "relu" and node.kind not in ("pool", "identity", *RESHAPE):
        raise _refusal(node, "the noise stability of Kuditipudi et al. is defined for ReLU networks")
    if node.kind == "pool" and not _apart(node.named()):
        raise _refusal(node, "pooling windows that overlap repeat values, so the activation is not 1-Lipschitz")


def _refusal(node: Node, why: str) -> UnsupportedError:
    return UnsupportedError(node.where or node.op, f"{node.op}: {why}")


def _apart(a: dict[str, Any]) -> bool:
    """Whether the windows of a pooling operation are disjoint and its factors at most 1."""
    kernel, stride = list(a["kernel_size"]), list(a["stride"] or a["kernel_size"])
    n = max(len(kernel), len(stride))
    kernel, stride = (v * n if len(v) == 1 else v for v in (kernel, stride))
    plain = set(a.get("dilation") or [1]) <= {1} and not a.get("divisor_override")
    return plain and all(k <= s for k, s in zip(kernel, stride, strict=True))


def _vjp(f: Callable[[Any], Any], x: Any) -> tuple[Any, Callable[[Any], Any]]:
    """f(x) and u -> (J^T u,); torch's own type admits a third value, which is for has_aux."""
    found = vjp(f, x)
    return found[0], found[1]


class Jacobian:
    """J_x of a map that treats every example of a batch by itself, as two functions: J v and J^T u.

    The second is torch.func.vjp; the first is the vjp of the second, which is linear: no forward pass is repeated.
    """

    def __init__(self, f: Callable[[Tensor], Any], x: Tensor) -> None:
        self.outputs, self._pull = _vjp(f, x)
        _, self._push = _vjp(lambda u: self._pull(u)[0], tree_map(torch.zeros_like, self.outputs))

    def push(self, v: Tensor) -> Any:
        """J v, in the shape of the outputs."""
        return self._push(v)[0]

    def pull(self, u: Any) -> Tensor:
        """J^T u."""
        return self._pull(u)[0]


@torch.no_grad()
def spectral_norms(
    jacobian: Jacobian, x: Tensor, *, tolerance: float, seed: int, basis: int = 16, cycles: int = 60
) -> tuple[Tensor, Tensor]:
    """The largest singular value of J_x for every example, and the relative accuracy reached, both [examples].

    Lanczos iteration with full reorthogonalisation on J^T J or J J^T, whichever is smaller, in cycles of at most
    `basis` vectors that restart from the best one; it stops when the residual certifies the relative accuracy
    `tolerance` for every example, and is exact when one side of J has at most `basis` entries. The value is
    the norm of J on one vector, so never too large but for rounding; the residual certifies a singular value, and
    that it is the largest rests on the random start. Memory: `basis` vectors per example.

    >>> A = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> x = torch.ones(1, 2, dtype=torch.float64)
    >>> float(spectral_norms(Jacobian(lambda v: v @ A.T, x), x, tolerance=1e-8, seed=0)[0])
    3.0
    """
    eps = torch.finfo(x.dtype).eps
    if not 10 * eps <= tolerance < 1:
        raise InputError("tolerance", expected=f"a number in [{10 * eps:.0e}, 1) for {x.dtype}", got=tolerance)
    y = jacobian.outputs
    wide = y[0].numel() < x[0].numel()
    shape = y.shape if wide else x.shape

    def gram(v: Tensor) -> Tensor:
        v = v.reshape(shape)
        out = jacobian.push(jacobian.pull(v)) if wide else jacobian.pull(jacobian.push(v))
        return out.flatten(1)

    n = shape[1:].numel()
    # one start for all examples, so that a result does not depend on the others in its batch
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v = (v / v.norm()).to(x).expand(shape[0], n)
    value, residual = x.new_zeros(shape[0]), x.new_full((shape[0],), float("inf"))
    for _ in range(cycles):
        value, residual, v = _cycle(gram, v, min(basis, n), 2 * tolerance)
        if bool((residual <= 2 * tolerance * value).all()):
            break
    accuracy = torch.where(value > 0, residual / (2 * value), torch.zeros_like(value))
    return value.clamp(min=0).sqrt(), accuracy


def _cycle(gram: Callable[[Tensor], Tensor], v: Tensor, basis: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """One cycle of Lanczos from unit vectors v [examples, n]: largest Ritz values, residuals, Ritz vectors."""
    vectors = [v]
    alpha: list[Tensor] = []
    beta: list[Tensor] = []
    while True:
        w = gram(vectors[-1])
        alpha.append((w * vectors[-1]).sum(1))
        for _ in range(2):  # twice is enough
            for q in vectors:
                w = w - (w * q).sum(1, keepdim=True) * q
        size = w.norm(dim=1)
        T = torch.diag_embed(torch.stack(alpha, 1))
        if beta:
            off = torch.stack(beta, 1)
            T = T + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        values, s = torch.linalg.eigh(T)
        value, s = values[:, -1], s[:, :, -1]
        # nothing is left outside a basis of the whole space: what remains of w is rounding
        residual = torch.zeros_like(size) if len(vectors) == v.shape[1] else size * s[:, -1].abs()
        if len(vectors) == basis or bool((residual <= tolerance * value).all()):
            ritz = (torch.stack(vectors, 2) * s[:, None, :]).sum(2)
            return value, residual, ritz / ritz.norm(dim=1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        # an invariant subspace: the zero vector adds zeros to T, which never are the largest value
        alive = size > 10 * torch.finfo(v.dtype).eps * value.abs()
        beta.append(torch.where(alive, size, torch.zeros_like(size)))
        vectors.append(torch.where(alive[:, None], w / size.clamp(min=torch.finfo(v.dtype).tiny)[:, None], 0))
