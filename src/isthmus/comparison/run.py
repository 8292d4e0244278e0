"""``compare``: every method whose premises hold, on one pair, in one table."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict, Unpack, get_type_hints

import torch

from isthmus.comparison.fitted import counted, fitted
from isthmus.comparison.table import Comparison, ComparisonRow
from isthmus.connectors import METHODS, Aligned, Auto, Bezier, Connector, Linear, Outcome, Renormalised, connect
from isthmus.connectors.base import describe
from isthmus.errors import FileError, InputError, UnsupportedError
from isthmus.kinds import check_kind, check_kinds
from isthmus.objective import Objective
from isthmus.objective.described import bound
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, check_finite
from isthmus.pipeline import STATE, Judging, check_pair, judge_of, kept, state_of
from isthmus.storage import load_connection, make_folder, read_sealed, sweep_temporaries, write_csv, write_json
from isthmus.storage.files import remove_file
from isthmus.storage.methods import connector_from
from isthmus.storage.state import memory_for
from isthmus.training.progress import Progress, no_progress

ALIGNED: tuple[Connector, ...] = (Aligned(Linear()), Aligned(Renormalised()), Aligned(Bezier()))
"""The wrapped methods that are compared, in place of ``Aligned`` and ``Renormalised`` alone."""
ALL: tuple[Connector, ...] = (
    *(m() for m in METHODS[:1]),
    *ALIGNED,
    *(m() for m in METHODS[1:] if m not in (Aligned, Renormalised, Auto)),
)
"""All methods with their defaults; ``Auto`` is made of the others."""


class CompareOptions(TypedDict, total=False):
    """How paths are judged, as in ``isthmus.pipeline.Judging``, the seed, and what results and paths say besides."""

    test: Objective | None
    num_points: int
    gap: float
    prove: bool
    level: float | str
    bn: str | None
    seed: int
    about: Mapping[str, Any]


def compare(
    objective: Objective,
    a: ParamsLike,
    b: ParamsLike,
    methods: Sequence[Connector | str] | None = None,
    *,
    budget: float | None = None,
    folder: PathLike[str] | str | None = None,
    progress: Progress = no_progress,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """Every method whose premises hold on one pair: how low its path is, what is proved of it, and what it cost.

    `methods`: methods, or their names; default: all, with their defaults. `budget`: passes over the data that the
    training of each is fitted to, by fewer or more epochs of curves and at most its own steps of others (a step counts
    as three passes over its batch); methods that do not train run as they are; default: what each has by itself. It is
    exceeded where the data are few: a training of curves looks at the loss of up to 2,000 examples 45 times and more,
    which are passes where there are no more examples, and none trains less than one epoch or step. A method that does
    not apply is no error: ``comparison.skipped`` says in a line why.

    `options`: `test`, a second data set; `num_points` (61) per segment; `gap` of ``certify``, or ``prove=False``;
    `level` of ``verdict``; `bn` of ``profile``; `seed` of every method; `about`, entries that each result holds
    besides, and each path where they are "model" and "data". `folder` keeps each path with its profile and proof in a
    folder of its own, as ``isthmus connect`` does: a call that was killed goes on with the same call, and ``isthmus
    report`` shows it.

    ``comparison.best`` has the lowest largest loss, ``.front`` are the rows that no other beats in excess and passes,
    ``.rows[i].connection`` is a path. Errors: ``InputError`` for ends that do not fit, complex128 among them,
    ``FileError`` for a folder with results of another call.

    >>> import torch
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> found = compare(objective, {"weight": torch.eye(2)}, {"weight": 2 * torch.eye(2)}, ["linear", "dropout"])
    >>> found.best.method, found.best.excess, list(found.skipped)
    ('Linear', 0.0, ['Dropout'])
    """
    check_kinds(compare, locals(), but=["methods"])
    _check_options(options)
    if budget is not None and not 1 <= budget < inf:
        raise InputError("budget", expected="None or a number of passes over the data >= 1", got=budget)
    given: dict[str, Any] = dict(options)
    seed, about = given.pop("seed", 0), {**given.pop("about", {})}
    how = Judging(**given)
    how.check(objective)
    ends = _ends(objective, a, b)
    named = _named(_chosen(methods), budget, objective)
    with TemporaryDirectory(prefix="isthmus-compare-") if folder is None else nullcontext(folder) as name:
        root = make_folder(Path(name))
        work = _Work(objective, ends, how, seed, about, root, progress)
        rows, skipped = [], {}
        for label, method in named.items():
            try:
                rows.append(work.row(label, method))
            except (InputError, UnsupportedError) as e:
                skipped[label] = str(e.args[0]).splitlines()[0]
    found = Comparison(tuple(rows), skipped, budget)
    if folder is not None:
        _write(found, root)
    return found


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that there are not, and values of another kind."""
    known = get_type_hints(CompareOptions)
    for name, value in options.items():
        if name not in known:
            raise InputError("options", expected=f"some of {', '.join(known)}", got=repr(name))
        check_kind(value, known[name], name)


def _ends(objective: Objective, a: ParamsLike, b: ParamsLike) -> tuple[Params, Params]:
    """Checked once, so that a wrong one is no reason of a method."""
    ends = objective.check(a, "a"), objective.check(b, "b")
    for name, end in zip("ab", ends, strict=True):
        check_finite({k: end[k] for k in objective.parameter_names if k in end}, name)
        if wide := [k for k, v in end.items() if v.dtype == torch.complex128]:
            raise InputError(
                f"{name}[{wide[0]!r}]", expected="complex64 at most: a path of complex128 fits into no file",
                got=end[wide[0]].dtype, instead="objective.cast(torch.float32) and weights in complex64",
            )  # fmt: skip
    check_pair(objective, *ends)
    return ends


def _chosen(methods: Sequence[Connector | str] | None) -> Sequence[Connector]:
    if methods is None:
        return ALL
    if isinstance(methods, str) or not isinstance(methods, Sequence) or not methods:
        raise InputError("methods", expected="several methods, or their names", got=repr(methods))
    if wrong := [m for m in methods if not isinstance(m, Connector | str)]:
        raise InputError("methods", expected="methods such as im.Bezier(), or their names", got=repr(wrong[0]))
    return [connector_from(m, "methods") if isinstance(m, str) else m for m in methods]


def _named(methods: Sequence[Connector], budget: float | None, objective: Objective) -> dict[str, Connector]:
    """The methods, fitted to the budget, by what the table calls them."""
    out: dict[str, Connector] = {}
    for method in methods:
        label, k = _label(method), 2
        while label in out:
            label, k = f"{_label(method)} {k}", k + 1
        out[label] = method if budget is None else fitted(method, budget, objective)
    return out


def _label(method: Connector) -> str:
    """The name, with that of what it wraps."""
    name = type(method).__name__
    return f"{name}({_label(method.inner)})" if isinstance(method, Aligned) else name


@dataclass(frozen=True, eq=False)
class _Work:
    """What all methods have in common."""

    objective: Objective
    ends: tuple[Params, Params]
    how: Judging
    seed: int
    about: dict[str, Any]
    root: Path
    progress: Progress

    def row(self, label: str, method: Connector) -> ComparisonRow:
        """Of one method; read, where it is there. Errors: why the method does not apply."""
        folder = self.root / re.sub(r"\W+", "-", label.lower()).strip("-")
        key = self._key(method)
        if (folder / "result.json").exists():
            result = read_sealed(folder / "result.json")
            if result.get("comparison") != key:
                raise FileError(folder, "holds a result of another call", "take another folder, or remove it")
            # of a process that was killed right after it had renamed its result
            sweep_temporaries(folder)
            shutil.rmtree(folder / STATE, ignore_errors=True)
            result |= read_sealed(folder / "record.json")
            return ComparisonRow.of(label, result, load_connection(folder / "path.safetensors", self.objective.device))
        return ComparisonRow.of(label, *self._made(label, method, folder, key))

    def _made(self, label: str, method: Connector, folder: Path, key: str) -> tuple[dict[str, Any], Any]:
        objective, test = self.objective, self.how.test
        state = state_of(objective, *self.ends, method, folder, test=test, seed=self.seed)
        begin = time.process_time()
        found = connect(
            objective, *self.ends, method,
            seed=self.seed, test=judge_of(method, test), memory=state, progress=self._told(label),
        )  # fmt: skip
        spent = time.process_time() - begin
        if found.outcome is Outcome.PREMISE_FAILS:
            failing = [str(premise) for premise in found.stats.get("premises", ())] or [found.message]
            more = f" (and {len(failing) - 1} more premises)" if len(failing) > 1 else ""
            raise UnsupportedError(label, f"{failing[0]}{more}")
        passes, estimated = counted(method, found, objective)
        cost = {
            "passes": passes, "estimated": estimated,
            "gradient_steps": found.cost.gradient_steps, "processor_seconds": spent,
        }  # fmt: skip
        about = self.about | {"seed": self.seed, "cost": cost, "comparison": key}
        done = kept(objective, found, make_folder(folder), self.how, about=about, progress=self._told(label))
        state.remove()
        return done.result, done.connection

    def _key(self, method: Connector) -> str:
        """What decides a result."""
        sets = [self.objective, *([] if self.how.test is None else [self.how.test])]
        judging = {k: v for k, v in vars(self.how).items() if k != "test"}
        known = {"ends": list(self.ends), "method": describe(method), "code": method.digests(), **bound(*sets)}
        known |= {"seed": self.seed, "how": judging}
        return memory_for(self.root, known).owner

    def _told(self, label: str) -> Progress:
        return lambda what, done, total: self.progress(f"{label}: {what}", done, total)


def _write(found: Comparison, folder: Path) -> None:
    """comparison.json and .csv."""
    write_json(folder / "comparison.json", found.to_dict())
    rows = [row.to_dict() for row in found.rows]
    if rows:
        write_csv(folder / "comparison.csv", {name: [row[name] for row in rows] for name in rows[0]})
        return
    for kind in ("csv", "svg", "png"):  # of a call before
        remove_file(folder / f"comparison.{kind}")
