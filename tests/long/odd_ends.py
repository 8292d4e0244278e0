"""Two ends of a path that are odd: equal, permuted, dead, vanishing or huge, strided, or parameters with gradients."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.params import Params


def pair(r: random.Random, module: nn.Module, x: Tensor, seed: int) -> tuple[Params, Params, list[str]]:
    """Both, and what is odd about them; the module has no tensor under two names."""
    a, b = (weights(module, 7 * seed + i, r.choice([1, 1, 1, 0.1, 5])) for i in (1, 2))
    relation = r.choice(["other"] * 6 + ["equal", "near", "negated", "permuted"])
    tags = [relation]
    _change(r, a, tags)
    if relation == "permuted":
        b = _permuted(module, x, {k: v.clone() for k, v in a.items()})
    elif relation != "other":
        b = {k: RELATIONS[relation](v) if _moves(k, v) else v.clone() for k, v in a.items()}
    if relation not in ("equal", "permuted"):
        _change(r, b, tags)
    return _laid_out(r, a, tags), _laid_out(r, b, tags), tags


RELATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "equal": lambda v: v.clone(),
    "near": lambda v: v + 1e-6 * torch.randn_like(v),
    "negated": lambda v: -v,
}


def weights(module: nn.Module, seed: int, scale: float) -> Params:
    """Weights of the usual size, times `scale`; what must be positive is."""
    g, out = torch.Generator().manual_seed(seed), {}
    for name, v in module.state_dict().items():
        if not v.is_floating_point() or name.endswith(("._u", "._v")):
            out[name] = v.clone()
            continue
        if name.endswith(("running_var", "original0")):
            w = 0.5 + torch.rand(v.shape, generator=g, dtype=torch.float64)
        else:
            fan = v[0].numel() if v.dim() > 1 else 4
            w = torch.randn(v.shape, generator=g, dtype=torch.float64) * scale * (2 / max(1, fan)) ** 0.5
        out[name] = w.to(v.dtype)
    return out


def _moves(name: str, v: Tensor) -> bool:
    return v.is_floating_point() and "running" not in name


def _permuted(module: nn.Module, x: Tensor, params: Params) -> Params:
    """The same function, its units in another order, where there are units that can be."""
    try:
        structure = im.derive_structure(copy.deepcopy(module).eval(), (x[:2],))
        return dict(structure.permute(params, {g.name: torch.randperm(g.size) for g in structure.groups}))
    except im.IsthmusError:
        return params


CHANGES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "dead units": lambda w, b: b[: max(1, len(b) // 2)].fill_(-1e3),
    "equal units": lambda w, b: (w[1:2].copy_(w[:1]), b[1:2].copy_(b[:1])),
    "proportional": lambda w, b: w[1:2].copy_(2 * w[:1]),
    "equal rows": lambda w, b: w.copy_(w[:1].clone().expand_as(w)),
    "zero": lambda w, b: w.zero_(),
    "zero row": lambda w, b: w[:1].zero_(),
    "zero column": lambda w, b: w[:, :1].zero_(),
    "zero bias": lambda w, b: b.zero_(),
    "-0": lambda w, b: w[:1].fill_(-0.0),
    "tiny": lambda w, b: w.mul_(1e-30),
    "denormal": lambda w, b: w.mul_(1e-310 if w.dtype == torch.float64 else 1e-42),
    "big": lambda w, b: w.mul_(1e4),
    "huge": lambda w, b: w.mul_(1e10),
    "negative": lambda w, b: w.abs_().neg_(),
    "whole": lambda w, b: w.round_(),
}
"""What may befall the weights [units, ...] and the bias [units], or [0], of a layer, in place."""


def _change(r: random.Random, params: Params, tags: list[str]) -> None:
    layers = [k for k, v in params.items() if k.endswith("weight") and v.dim() >= 2]
    for _ in range(r.choice([0, 0, 1, 1, 2]) if layers else 0):
        name, change = r.choice(layers), r.choice(list(CHANGES))
        params[name] = w = params[name].contiguous()
        CHANGES[change](w, params.get(name.removesuffix("weight") + "bias", w.new_empty(0)))
        tags.append(f"{change}: {name}")


def _laid_out(r: random.Random, params: Params, tags: list[str]) -> Params:
    """In memory and as tensors of another kind."""
    how = r.choice(["plain"] * 4 + list(LAYOUTS))
    tags.append(how)
    lay = LAYOUTS.get(how, lambda v: v)
    return {k: lay(v) if v.is_floating_point() and v.dim() else v for k, v in params.items()}


def _strided(v: Tensor) -> Tensor:
    big = v.new_zeros(*v.shape, 2)
    big[..., 0] = v
    return big[..., 0]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda v: v.t().contiguous().t() if v.dim() == 2 else v,
    "strided": _strided,
    "expanded": lambda v: v[:1].clone().expand(v.shape) if v.dim() == 1 else v,
    "wants gradients": lambda v: v.clone().requires_grad_(),
    "parameters": lambda v: nn.Parameter(v.clone()),
    "frozen parameters": lambda v: nn.Parameter(v.clone(), requires_grad=False),
}
