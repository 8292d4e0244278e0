"""Linear separability with a certificate either way: separators with margins, or a dual vector that refutes them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog, minimize
from scipy.sparse import csr_array
from torch import Tensor

from isthmus.errors import InputError

TOLERANCE = 1e-9
"""Examples are called inseparable when no separator of unit size (largest entry 1) has a larger relative margin."""

_STEPS = 400
"""Steps of the margin solver before linear programs take over."""

_FIRST = 50
"""Steps after which a linear program may already refute."""

_VARIABLES = 1200
"""The largest linear program; "argmax" problems beyond it can only be refuted by two classes that overlap."""

_ROUNDS = 30
"""Linear programs per problem; each adds the examples that the separator of the one before gets wrong."""


@dataclass(frozen=True, eq=False)
class Separability:
    """Whether one hyperplane per class separates it from the others, and the proof.

    `separable`: True, False, or None where neither could be shown. True: the scores ``features @ weight.T + offset``
    have relative margins of at least `margin` > 0 (more than rounding can explain). False: `refuted` is a class and
    `dual` a weight >= 0, summing to 1, for each of the examples `examples` with ``| sum_j dual_j s_j [f_j, 1] | <=
    residual`` in the sum norm, s_j = +1 for the class and -1 for others, features scaled to norm at most 1: no w with
    entries in [-1, 1] then has margins above `residual` <= ``TOLERANCE``. For ``kind="argmax"``, s_j f_j becomes the
    difference of the scores of the own class and of `rivals`, and `refuted` is -1.
    """

    kind: str
    separable: bool | None
    weight: Tensor
    offset: Tensor
    margin: float
    refuted: int = -1
    examples: Tensor | None = None
    rivals: Tensor | None = None
    dual: Tensor | None = None
    residual: float = inf

    def check(self, features: Tensor, labels: Tensor, *, bias: bool = True) -> bool | None:
        """What the certificate proves about these data, computed anew in float64; None: nothing."""
        problem = _Problem.of(features, labels, self.weight.shape[0], self.kind, bias)
        if problem.margin(problem.joined(self.weight, self.offset)) > 0:
            return True
        if self.dual is None or self.examples is None:
            return None
        residual = problem.part(self.refuted).residual(self.examples, self.rivals, self.dual)
        return False if residual <= TOLERANCE else None


def separate(
    features: Tensor, labels: Tensor, classes: int | None = None, *, kind: str = "each", bias: bool = True
) -> Separability:
    """Separate the classes by hyperplanes, or prove that it cannot be done.

    `features`: [N, ...], each example flattened; `labels`: [N] in 0 .. `classes` - 1. ``kind="each"`` (Corollary 4.4
    of Nguyen, Brechet, Mondelli 2021): one hyperplane per class, the class on its positive side and all others
    on the negative. ``kind="argmax"``: scores of which that of the own class is the largest; weaker, and enough to
    classify. `bias`: whether hyperplanes may miss the origin.

    A margin solver (logistic regression on whitened features by L-BFGS) finds separators fast where there are any;
    linear programs (HiGHS) on the examples with the smallest margins, then on those they get wrong, decide the rest:
    a subset that cannot be separated proves it for all. Cost: at most 450 passes over the data, and programs in
    (features + 1) variables ((classes - 1) times as many for "argmax", where two classes alone do not refute).

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> separate(x, torch.tensor([0, 0, 1])).separable, separate(x, torch.tensor([0, 1, 0])).separable
    (True, False)
    """
    _check_asked(features, labels, kind)
    problem = _Problem.of(features, labels, _known(classes or int(labels.max()) + 1, kind), kind, bias)
    for steps in (_FIRST, _STEPS):
        W = problem.solve(steps)
        margin = problem.margin(W)
        if margin > 0:
            return problem.found(W, margin, True)
        if refuted := problem.refuted(W):
            return problem.found(W, margin, False, **refuted)
    for k in _wrong(problem, W, kind):
        if problem.part(k).variables > _VARIABLES:
            break
        w, refutation = problem.part(k).decide(problem.start(W, k))
        if refutation:
            return problem.found(W, problem.margin(W), False, refuted=k, **refutation)
        W = W if w is None else problem.put(W, w, k)
    margin = problem.margin(W)
    return problem.found(W, margin, True if margin > 0 else None)


def _wrong(problem: _Problem, W: Tensor, kind: str) -> list[int]:
    """The parts of the problem that W does not solve: classes, or the whole."""
    if kind == "argmax":
        return [-1]
    return [k for k in range(problem.classes) if problem.part_margin(W, k) <= 0]


def _check_asked(features: Tensor, labels: Tensor, kind: str) -> None:
    if kind not in ("each", "argmax"):
        raise InputError("kind", expected="'each' or 'argmax'", got=repr(kind))
    if labels.dim() != 1 or labels.is_floating_point() or len(labels) != len(features):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise InputError("labels", expected=f"{len(features)} class numbers", got=got)
    if not features[:1].numel():
        raise InputError("features", expected="at least one example with at least one feature", got=features.shape)


def _known(classes: int, kind: str) -> int:
    """The number of classes; one alone has no rival."""
    if classes < 2 and kind == "argmax":
        raise InputError("classes", expected="two or more, of which one score is the largest", got=classes)
    return classes


@dataclass(frozen=True, eq=False)
class _Problem:
    """z: features over their largest norm, with a last column of ones if there are biases, float64 [N, D]."""

    z: Tensor
    y: Tensor
    classes: int
    kind: str
    scale: float
    bias: bool

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int, kind: str, bias: bool) -> _Problem:
        f = features.detach().flatten(1).double()
        scale = float(f.norm(dim=1).max()) or 1.0
        z = f / scale
        z = torch.cat([z, torch.ones_like(z[:, :1])], 1) if bias else z
        return cls(z, labels, classes, kind, scale, bias)

    def found(self, W: Tensor, margin: float, separable: bool | None, **refutation: Any) -> Separability:
        weight, offset = (W[:, :-1], W[:, -1]) if self.bias else (W, W.new_zeros(len(W)))
        return Separability(self.kind, separable, weight / self.scale, offset, margin, **refutation)

    def joined(self, weight: Tensor, offset: Tensor) -> Tensor:
        """The rows that `found` took apart."""
        weight = weight.double() * self.scale
        return torch.cat([weight, offset[:, None]], 1) if self.bias else weight

    def margins(self, W: Tensor) -> Tensor:
        """[N, classes]: positive where right; infinite for the own class of "argmax"."""
        scores = self.z @ W.T
        own = torch.nn.functional.one_hot(self.y, self.classes).bool()
        if self.kind == "each":
            return torch.where(own, scores, -scores)
        return (scores.gather(1, self.y[:, None]) - scores).masked_fill(own, inf)

    def margin(self, W: Tensor) -> float:
        """The smallest margin of W `scaled`, less what rounding may have added; at most 0 if W does not separate."""
        if not bool(W.isfinite().all()) or not float(W.abs().max()) > 0:
            return 0.0
        W = self.scaled(W)
        # |z| <= sqrt(2), so each score is computed to (D + 2) u sqrt(2) |w|, and two enter a margin
        slack = 4 * (self.z.shape[1] + 2) * torch.finfo(torch.float64).eps * float(W.norm(dim=1).max())
        return float(self.margins(W).min()) - slack

    def scaled(self, W: Tensor) -> Tensor:
        """W with largest entry 1; each row for itself where each is a hyperplane."""
        return W / (W.abs().amax(1, keepdim=True).clamp(min=1e-300) if self.kind == "each" else W.abs().max())

    def part_margin(self, W: Tensor, k: int) -> float:
        """The smallest margin of class k alone."""
        return float(self.margins(W)[:, k].min())

    def part(self, k: int) -> _Problem:
        """Class k against the others as a problem of two classes; k = -1: the problem itself."""
        if k < 0:
            return self
        return _Problem(self.z, (self.y == k).long(), 2, "argmax", self.scale, self.bias)

    def start(self, W: Tensor, k: int) -> Tensor:
        """The separators of the part where those of the whole are W."""
        return W if k < 0 else torch.stack([torch.zeros_like(W[k]), W[k]])

    def put(self, W: Tensor, w: Tensor, k: int) -> Tensor:
        """W with what was found for the part."""
        if k < 0:
            return w
        W = self.scaled(W)
        W[k] = w[1] - w[0]
        return W

    @property
    def variables(self) -> int:
        """Of a linear program: the weights of all classes but one."""
        return (self.classes - 1) * self.z.shape[1]

    def refuted(self, W: Tensor) -> dict[str, Any]:
        """A refutation by one linear program on the worst examples of the worst class (pair of classes), or nothing."""
        margins = self.margins(W)
        if self.kind == "each":
            k = int(margins.clamp(max=0).sum(0).argmin())
            refutation = self.part(k).decide(self.start(W, k), rounds=1)[1]
            return refutation | {"refuted": k} if refutation else {}
        lost = margins.clamp(max=0)
        table = torch.zeros(self.classes, self.classes, dtype=lost.dtype, device=lost.device).index_add(0, self.y, lost)
        c, d = divmod(int((table + table.T).argmin()), self.classes)
        both = ((self.y == c) | (self.y == d)).nonzero().flatten()
        pair = _Problem(self.z[both], (self.y[both] == d).long(), 2, "argmax", self.scale, self.bias)
        refutation = pair.decide(torch.stack([W[c], W[d]]), rounds=1)[1] if c != d else {}
        if not refutation:
            return {}
        j = both[refutation["examples"]]
        return refutation | {"examples": j, "rivals": c + d - self.y[j]}

    # -- the margin solver

    def solve(self, steps: int) -> Tensor:
        """Separators by regression on whitened features, the best until half as many steps again as the first took."""
        values, vectors = torch.linalg.eigh(self.z.T @ self.z / len(self.z))
        keep = values > 1e-13 * values[-1]
        back = vectors[:, keep] / values[keep].sqrt()
        white = self.z @ back
        best = torch.zeros(self.classes, self.z.shape[1], dtype=torch.float64, device=self.z.device)
        margin, step, last = 0.0, 0, steps
        inside = _Problem(white, self.y, self.classes, self.kind, 1.0, False)

        def value(w: np.ndarray) -> tuple[float, np.ndarray]:
            v = torch.from_numpy(w).to(white).reshape(self.classes, -1).requires_grad_()
            margins = inside.margins(v)
            if self.kind == "each":
                loss = torch.nn.functional.softplus(-margins).mean()
            else:
                own = -margins.masked_fill(margins == inf, 0)  # log sum of exp(-margin), the own class giving 1
                loss = own.logsumexp(1).mean()
            nonlocal margin
            if float(margins.detach().min()) > 0:
                W = v.detach() @ back.T
                if (found := self.margin(W)) > margin:
                    best.copy_(W)
                    margin = found
            (g,) = torch.autograd.grad(loss, v)
            return float(loss.detach()), g.flatten().cpu().numpy()

        def stop(intermediate_result: object) -> None:
            nonlocal step, last
            step += 1
            if margin > 0 and last == steps:
                last = step + step // 2 + 10
            if step >= last:
                raise StopIteration

        start = np.zeros(self.classes * white.shape[1])
        options = {"maxiter": 2 * steps, "maxcor": 20, "ftol": 0.0, "gtol": 1e-14}
        out = minimize(value, start, jac=True, method="L-BFGS-B", callback=stop, options=options)
        if margin > 0:
            return best
        return torch.from_numpy(out.x).to(white).reshape(self.classes, -1) @ back.T

    # -- linear programs

    def decide(self, W: Tensor, rounds: int = _ROUNDS) -> tuple[Tensor | None, dict[str, Any]]:
        """Separators, or a refutation, by linear programs on a growing set of (example, rival class) pairs."""
        chosen: Tensor | None = None
        for _ in range(rounds):
            margins = self.margins(W)
            if chosen is not None and self.margin(W) > 0:
                return W, {}
            grown = self._grown(chosen, margins.flatten())
            if chosen is not None and len(grown) == len(chosen):
                return None, {}
            chosen = grown
            j, k = chosen // self.classes, chosen % self.classes
            w, alpha = _program(self.rows(j, k))
            if float(alpha.sum()) > 0 and (refutation := self.refute(j, k, alpha)):
                return None, refutation
            W = torch.cat([torch.zeros_like(W[:1]), w.to(W).reshape(self.classes - 1, -1)])
        return (W, {}) if self.margin(W) > 0 else (None, {})

    def _grown(self, chosen: Tensor | None, margins: Tensor) -> Tensor:
        """The pairs with the smallest margins, beside those that were chosen before."""
        order = margins.argsort()[: 2 * self.variables if chosen is None else self.variables]
        order = order[margins[order] < inf]
        return order if chosen is None else torch.cat([chosen, order]).unique()

    def rows(self, j: Tensor, k: Tensor) -> Any:
        """The inequalities ``row @ w > 0`` of these pairs, w holding the classes 1 .. C-1 (class 0 scores 0)."""
        D, z, y = self.z.shape[1], self.z[j].cpu().numpy(), self.y[j].cpu().numpy()
        blocks = [((y == c).astype(float) - (k.cpu().numpy() == c))[:, None] * z for c in range(1, self.classes)]
        return csr_array(np.concatenate(blocks, 1).reshape(len(j), (self.classes - 1) * D))

    def refute(self, j: Tensor, k: Tensor, alpha: Tensor) -> dict[str, Any]:
        """The dual vector made as exact as float64 allows; empty if it still proves nothing."""
        best: dict[str, Any] = {}
        support = alpha > 0
        j, k, alpha = j[support], k[support], alpha[support] / alpha[support].sum()
        for dual in (alpha, self.polished(j, k)):
            if dual is None:
                continue
            residual = self.residual(j, k, dual)
            if residual <= min(TOLERANCE, best.get("residual", inf)):
                best = {"examples": j, "rivals": k, "dual": dual, "residual": residual}
        return best

    def polished(self, j: Tensor, k: Tensor) -> Tensor | None:
        """The weights on these pairs that solve the equations best, if none is negative."""
        G = torch.from_numpy(self.rows(j, k).toarray()).to(self.z)
        top = torch.cat([G.T, torch.ones_like(G[:, :1]).T])
        aim = torch.zeros(len(top), 1, dtype=G.dtype, device=G.device)
        aim[-1] = 1
        found = torch.linalg.lstsq(top.cpu(), aim.cpu(), driver="gelsd").solution.flatten().to(G)
        return found / found.sum() if bool((found >= 0).all()) and float(found.sum()) > 0 else None

    def residual(self, j: Tensor, k: Tensor | None, dual: Tensor) -> float:
        """The sum norm of the combination of rows, with the rounding of its computation added; inf if not a dual."""
        if k is None or bool((dual < 0).any()) or abs(float(dual.sum()) - 1) > 1e-9 or bool((k == self.y[j]).any()):
            return inf
        value = float(np.abs(self.rows(j, k).T @ dual.double().cpu().numpy()).sum())
        rounding = (len(j) + 2) * torch.finfo(torch.float64).eps * sqrt(2 * self.z.shape[1]) * 2
        return value + rounding


def _program(G: Any) -> tuple[Tensor, Tensor]:
    """max t subject to ``G w >= t`` and entries of w in [-1, 1], with its dual weights on the rows."""
    n = G.shape[1]
    left = csr_array(np.concatenate([-G.toarray(), np.ones((G.shape[0], 1))], 1))
    cost = np.zeros(n + 1)
    cost[-1] = -1
    bounds = [(-1.0, 1.0)] * n + [(None, None)]
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    out = linprog(cost, A_ub=left, b_ub=np.zeros(G.shape[0]), bounds=bounds, method="highs", options=options)
    if out.x is None:
        return torch.zeros(n, dtype=torch.float64), torch.zeros(G.shape[0], dtype=torch.float64)
    alpha = np.maximum(-out.ineqlin.marginals, 0) if out.x[-1] <= 1e-7 else np.zeros(G.shape[0])
    return torch.from_numpy(out.x[:-1]), torch.from_numpy(alpha)
