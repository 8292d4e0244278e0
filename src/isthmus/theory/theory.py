"""``theory``: every theorem's premises on a pair of networks, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import torch

from isthmus.checks import check_loss
from isthmus.errors import InputError, UnsupportedError
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import check_finite
from isthmus.theory import freeman2017, kuditipudi2019, nguyen2019, nguyen2021, shevchenko2020, signs
from isthmus.theory.table import MeasuredPair, Premises, Row, Settings, Theory, not_convex
from isthmus.training.progress import Progress, no_progress

THEOREMS: tuple[tuple[str, Premises], ...] = (
    (f"{kuditipudi2019.PAPER}, Theorem 1", kuditipudi2019.theorem_1),
    (f"{kuditipudi2019.PAPER}, Theorem 2", kuditipudi2019.theorem_2),
    (f"{kuditipudi2019.PAPER}, Theorem 3", kuditipudi2019.theorem_3),
    (f"{kuditipudi2019.PAPER}, Theorem 4", kuditipudi2019.theorem_4),
    (f"{nguyen2021.PAPER}, Theorem 4.1", nguyen2021.theorem_4_1),
    (f"{nguyen2021.PAPER}, Corollary 4.2", nguyen2021.corollary_4_2),
    (f"{nguyen2021.PAPER}, Corollary 4.3", nguyen2021.corollary_4_3),
    (f"{nguyen2021.PAPER}, Corollary 4.4", nguyen2021.corollary_4_4),
    (f"{shevchenko2020.PAPER}, Theorem 1 (B)", shevchenko2020.theorem_1),
    (f"{shevchenko2020.PAPER}, Theorem 2 (B)", shevchenko2020.theorem_2),
    (f"{nguyen2019.PAPER}, Theorem 3.2", nguyen2019.theorem_3_2),
    (f"{nguyen2019.PAPER}, Theorem 5.1", nguyen2019.theorem_5_1),
    (f"{nguyen2019.PAPER}, Theorem 6.1", nguyen2019.theorem_6_1),
    (f"{freeman2017.PAPER}, Proposition 2.2", freeman2017.proposition_2_2),
    (f"{freeman2017.PAPER}, Theorem 2.4", freeman2017.theorem_2_4),
    (signs.NAME, signs.sign_argument),
)
"""All theorems, by name: a new one adds its line."""


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and (value != int(value) or value < 1):
            raise InputError(name, expected="a whole number >= 1", got=value)


def _named(parts: Sequence[str]) -> tuple[tuple[str, Premises], ...]:
    chosen = tuple((name, premises) for name, premises in THEOREMS if any(part in name for part in parts))
    if not chosen:
        raise InputError("theorems", expected=f"part of a name: {', '.join(n for n, _ in THEOREMS)}", got=parts)
    return chosen


def _rows(name: str, premises: Premises, pair: MeasuredPair) -> Sequence[Row]:
    if not pair.objective.convex and premises not in (kuditipudi2019.theorem_4, signs.sign_argument):
        return not_convex(name)
    try:
        return premises(pair)
    except torch.linalg.LinAlgError as e:
        why = next(iter(str(e).splitlines()), type(e).__name__)
        return [Row(name, "the theorem's setting", holds=None, note=f"not computed: {why}")]
    except (UnsupportedError, InputError) as e:
        return [Row(name, "the theorem's setting", holds=None, note=f"not applicable: {e}")]


def theory(
    objective: Objective,
    a: ParamsLike,
    b: ParamsLike,
    *,
    theorems: Sequence[str] | None = None,
    masks: int = 50,
    draws: int = 5,
    steps: int = 500,
    examples: int | None = 500,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Theory:
    """Each theorem's premises on this pair of networks, measured, with the bound it then gives.

    What it may cost: `masks` subsets per layer for dropout stability; `draws` draws of the noise, and of the subsets of
    each trained subnetwork; `steps` training steps for each of these; the first `examples` examples (None: all) for
    noise stability. All else is measured on all examples. `theorems`: only those whose name holds one of these
    texts, such as "Theorem 4.1" or "Nguyen 2019".

    One row goes the other way: where the signs of the output weights of two layers differ in number, no path stays low.
    A theorem whose scope the network is outside of has one row, not checkable, that says why. Dropout stability and
    the Q_l are upper bounds from a search, so the bounds of Theorem 1, Theorem 4.1 and the corollaries are valid
    and may be improved by searching longer.

    Errors: ``InputError`` for ends that do not fit and for a theorem that is not among the rows.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).state_dict()
    >>> module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> table = theory(Objective(module, data=(torch.eye(2), torch.tensor([0, 1]))), net, net, theorems=["Theorem 1"])
    >>> [row.premise for row in table.rows][:2]
    ['loss convex in the outputs', 'dropout stability epsilon']
    """
    check_kinds(theory, locals())
    _check_counts(masks=masks, draws=draws, steps=steps, examples=examples)
    chosen = THEOREMS if theorems is None else _named(theorems)
    params = objective.check(a, "a"), objective.check(b, "b")
    for value, name in zip(params, "ab", strict=True):
        check_finite({k: value[k] for k in objective.parameter_names}, name)
    pair = MeasuredPair(objective, params, Settings(masks, draws, steps, examples, seed), progress)
    for loss, name in zip(pair.losses, "ab", strict=True):
        check_loss(name, loss)
    rows: list[Row] = []
    for name, premises in chosen:
        rows += _rows(name, premises, pair)
    return Theory(tuple(map(_numbered, rows)))


def _numbered(row: Row) -> Row:
    """The row; what could not be measured, or is not finite, has no number."""
    return row if row.measured is None or isfinite(row.measured) else replace(row, measured=None)
