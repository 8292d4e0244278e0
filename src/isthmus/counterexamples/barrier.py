"""B_h = min over A of mean_i (sum_u relu(a_u . x_i) - y_i)^2 with h - 1 units: exactly for one, by starts for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.optimize import minimize

from isthmus.shown import one_line

_Rows = Sequence[Sequence[int]]
_Vector = list[Fraction]


@one_line
@dataclass(frozen=True, eq=False)
class LowestBarrier:
    """`value` of B_h, the minimiser found, and `how`; `exact` is the proved global minimum, or None for an estimate."""

    value: float
    how: str
    exact: Fraction | None
    minimiser: tuple[tuple[float, ...], ...]


def analytic_bound(h: int, k: int, l: int, m: int, n: int) -> Fraction:
    """A proved lower bound of B_h for any h: Lemma 6 with numbers.

    Let r_i be the residuals, p_u and q_u the first two entries of a_u, P and Q the sums of their positive parts, N_j
    the sum over the units of the negative parts of entry j.
    (1) The rows -e_j (c_j copies) have output N_j = |r_i|.
    (2) Rows k+1 and k+1+h have one residue rho and differ by h (e_1 + e_2). As relu(z + d) - relu(z) >= d - z^-,
        h (P + Q) <= |r_{k+1}| + |r_{k+1+h}| + (h + k + 1) N_1 + (h + k) N_2 + N_rho.
    (3) A unit has at most one residue whose entry exceeds the sum of the positive parts of all others; there are more
        residues than units, so some residue r is nobody's. In row r <= k all other residues enter with -1, so
        1 - |r_r| <= f(x_r) <= r P + (r - 1) Q + sum of N_s over the residues s other than r.
    Together 1 <= sum of coefficients times |residuals|, and by Cauchy's inequality mean r^2 >= 1 / (n S), where S
    adds the squares of the coefficients, that of N_j divided by c_j. The worst r counts.
    """
    copies = [len(range(1, m - l + 1, 2)), len(range(2, m - l + 1, 2))]
    copies += [len(range(s, n - m + 1, h)) for s in range(1, h + 1)]
    rho = k % h + 1  # of row k + 1, counted 1..h
    worst = Fraction(0)
    for r in range(1, h + 1):
        a = Fraction(r, h)
        entries = [a * (h + k + 1), a * (h + k)] + [Fraction(s != r) + a * (s == rho) for s in range(1, h + 1)]
        total = 1 + 2 * a**2 + sum((q**2 / c for q, c in zip(entries, copies, strict=True)), Fraction(0))
        worst = max(worst, total)
    return 1 / (n * worst)


def one_unit(x: _Rows, y: Sequence[int]) -> LowestBarrier:
    """The global minimum over one unit, as a rational number.

    Points with y = 0 contribute relu(z)^2, which is convex. For a point with y = 1, (relu(z) - 1)^2 is at least the
    smaller of (z - 1)^2 and 1, and equal to it for z <= 2: "on" or "off". So the minimum over all on-off patterns of a
    convex, continuously differentiable, piecewise quadratic function bounds the objective from below, and where its
    minimiser has the value of the objective it is the global minimum. The patterns are searched point by point
    (branch and bound: undecided points count 0); every minimum is verified in rational arithmetic by its gradient,
    which is exactly 0.
    """
    search = _Search([[Fraction(v) for v in row] for row in x], list(y))
    search.branch([], np.zeros(len(x[0])), Fraction(0))
    closed = search.lower == search.upper
    how = f"{search.nodes} convex problems over activation patterns, in exact arithmetic"
    how = f"global minimum over one unit: {how}" if closed else f"proved lower bound, not attained: {how}"
    value = search.lower / len(y)
    return LowestBarrier(float(value), how, value if closed else None, (tuple(float(v) for v in search.best),))


class _Search:
    """Branch and bound over on-off patterns of the points with y = 1, in sums (not means) of squares."""

    def __init__(self, x: list[_Vector], y: list[int]) -> None:
        self.ones = [row for row, label in zip(x, y, strict=True) if label]
        self.zeros = [row for row, label in zip(x, y, strict=True) if not label]
        self.upper = Fraction(len(self.ones))
        self.best: _Vector = [Fraction(0)] * len(x[0])
        self.lower = self.upper
        self.nodes = 0

    def value(self, a: _Vector) -> Fraction:
        """The objective itself."""
        on = sum(((max(_dot(row, a), Fraction(0)) - 1) ** 2 for row in self.ones), Fraction(0))
        return on + sum((max(_dot(row, a), Fraction(0)) ** 2 for row in self.zeros), Fraction(0))

    def branch(self, pattern: list[bool], start: np.ndarray, above: Fraction) -> None:
        """Bound the patterns that begin with `pattern`; split on the next point unless they cannot win.

        `above` is a bound that holds for all of them, used where no exact minimiser was found.
        """
        self.nodes += 1
        on = [row for row, chosen in zip(self.ones, pattern, strict=False) if chosen]
        a, near, exact = _smallest(on, self.zeros, start)
        bound = above
        if exact:
            bound = sum(((_dot(row, a) - 1) ** 2 for row in on), Fraction(pattern.count(False)))
            bound += sum((max(_dot(row, a), Fraction(0)) ** 2 for row in self.zeros), Fraction(0))
        if (value := self.value(a)) < self.upper:
            self.upper, self.best = value, a
        if len(pattern) == len(self.ones):
            self.lower = min(self.lower, bound)
        elif bound < self.upper:  # else nothing below is smaller than the value already found
            for chosen in (True, False):
                self.branch([*pattern, chosen], near, bound)
        self.lower = min(self.lower, self.upper)


def _smallest(on: list[_Vector], zeros: list[_Vector], start: np.ndarray) -> tuple[_Vector, np.ndarray, bool]:
    """The minimiser of sum_on (x . a - 1)^2 + sum_zeros relu(x . a)^2, exactly, and in floating point.

    Newton's method on the active rows, with line search in floating point, then without in rational arithmetic,
    until the active rows are those it was solved for. The last value says whether that was reached: then the
    gradient of the convex function is exactly 0.
    """
    if not on:
        return [Fraction(0)] * len(start), np.zeros_like(start), True
    near = _newton(np.array(on, dtype=float), np.array(zeros, dtype=float), start)
    exact = [Fraction(round(v * 2**20), 2**20) for v in near]
    active = [bool(z > 1e-9) for z in np.array(zeros, dtype=float) @ near]
    for _ in range(20):
        exact = _solve(on, [row for row, is_on in zip(zeros, active, strict=True) if is_on], exact)
        if not any(_gradient(on, zeros, exact)):
            return exact, near, True
        active = [_dot(row, exact) > 0 for row in zeros]
    return exact, near, False


def _newton(E: np.ndarray, Z: np.ndarray, a: np.ndarray) -> np.ndarray:
    def f(a: np.ndarray) -> float:
        return float(((E @ a - 1) ** 2).sum() + (np.maximum(Z @ a, 0) ** 2).sum())

    for _ in range(200):
        active = Z @ a > 1e-12
        M = np.vstack([E, Z[active]])
        step = np.linalg.lstsq(M, np.concatenate([1 - E @ a, -(Z[active] @ a)]), rcond=None)[0]
        t = 1.0
        while t > 1e-9 and f(a + t * step) > f(a):
            t /= 2
        if np.abs(step).max() < 1e-13 or t <= 1e-9:
            break
        a = a + t * step
    return a


def _gradient(on: list[_Vector], zeros: list[_Vector], a: _Vector) -> _Vector:
    """Half the gradient of sum_on (x . a - 1)^2 + sum_zeros relu(x . a)^2."""
    return [
        sum(((_dot(row, a) - 1) * row[j] for row in on), Fraction(0))
        + sum((max(_dot(row, a), Fraction(0)) * row[j] for row in zeros), Fraction(0))
        for j in range(len(a))
    ]


def _solve(on: list[_Vector], active: list[_Vector], near: _Vector) -> _Vector:
    """A solution of the normal equations of these rows; where it is not unique, free entries are those of `near`."""
    size = len(near)
    rows = [
        [sum((r[i] * r[j] for r in (*on, *active)), Fraction(0)) for j in range(size)]
        + [sum((r[i] for r in on), Fraction(0))]
        for i in range(size)
    ]
    pivots = _eliminate(rows)
    out = list(near)
    for at, j in enumerate(pivots):
        others = (rows[at][i] * near[i] for i in range(size) if i not in pivots)
        out[j] = rows[at][size] - sum(others, Fraction(0))
    return out


def _eliminate(rows: list[_Vector]) -> list[int]:
    """Gauss-Jordan elimination of square equations with their right sides, in place; the column of each pivot."""
    pivots: list[int] = []
    for j in range(len(rows)):
        at = len(pivots)
        k = next((i for i in range(at, len(rows)) if rows[i][j]), None)
        if k is None:
            continue
        rows[at], rows[k] = rows[k], rows[at]
        rows[at] = [v / rows[at][j] for v in rows[at]]
        for i in range(len(rows)):
            if i != at and rows[i][j]:
                rows[i] = [v - rows[i][j] * w for v, w in zip(rows[i], rows[at], strict=True)]
        pivots.append(j)
    return pivots


def _dot(row: _Vector, a: _Vector) -> Fraction:
    return sum((p * q for p, q in zip(row, a, strict=True)), Fraction(0))


def multistart(
    x: _Rows, y: Sequence[int], units: int, starts: int = 500, rounds: int = 4, seed: int = 0
) -> LowestBarrier:
    """The smallest of many local minima: at least B_h, so an estimate of it from above.

    Levenberg-Marquardt steps on the piecewise linear residuals from random starts, then, in further rounds, from
    the best points found with noise added; the best are finished by L-BFGS.
    """
    X, target = np.array(x, dtype=float), np.array(y, dtype=float)
    rng = np.random.default_rng(seed)
    shape = (starts, units, X.shape[1])
    A = rng.normal(size=shape) * rng.choice([0.1, 0.3, 1.0], size=(starts, 1, 1))
    A, values = _descend(X, target, A)
    for _ in range(rounds):
        best = A[values.argsort()[: max(1, starts // 25)]]
        noise = rng.normal(size=shape) * rng.choice([0.02, 0.1, 0.3], size=(starts, 1, 1))
        trial, found = _descend(X, target, best[rng.integers(len(best), size=starts)] + noise)
        A, values = np.concatenate([best, trial]), np.concatenate([np.sort(values)[: len(best)], found])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        z = X @ flat.reshape(units, -1).T
        residual = np.maximum(z, 0).sum(1) - target
        return float((residual**2).mean()), (2 / len(target) * ((residual[:, None] * (z > 0)).T @ X)).ravel()

    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-11}
    polished = [
        minimize(loss, A[s].ravel(), jac=True, method="L-BFGS-B", options=options) for s in values.argsort()[:8]
    ]
    best = min(polished, key=lambda found: float(found.fun))
    tried = starts * (rounds + 1)
    how = f"smallest of {tried} local minima over {units} units: an estimate from above, not proved"
    rows = best.x.reshape(units, -1)
    return LowestBarrier(float(best.fun), how, None, tuple(tuple(float(v) for v in row) for row in rows))


def _descend(X: np.ndarray, target: np.ndarray, A: np.ndarray, steps: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt from every A [starts, units, inputs] at once, and the mean squares reached."""
    A = A.copy()
    eye = np.eye(A.shape[1] * A.shape[2])

    def residuals(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = np.einsum("nd,sud->snu", X, A)
        return np.maximum(z, 0).sum(2) - target, z > 0

    r, on = residuals(A)
    damping = np.ones(len(A))
    for _ in range(steps):
        J = (on[..., None] * X[None, :, None, :]).reshape(len(A), len(X), -1)
        H = J.transpose(0, 2, 1) @ J + damping[:, None, None] * eye
        trial = A + np.linalg.solve(H, -(J.transpose(0, 2, 1) @ r[..., None])).reshape(A.shape)
        r_trial, on_trial = residuals(trial)
        better = (r_trial**2).sum(1) < (r**2).sum(1)
        A[better], r[better], on[better] = trial[better], r_trial[better], on_trial[better]
        damping = np.clip(np.where(better, damping / 3, damping * 2), 1e-12, 1e6)
    return A, (r**2).mean(1)
