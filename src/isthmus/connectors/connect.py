"""``connect``: the one entry to every method."""

from __future__ import annotations

import time
from dataclasses import replace
from os import PathLike

import torch
from torch import Tensor

from isthmus.connectors.base import Connection, Connector, Task, check_convex, describe, needs_convex
from isthmus.connectors.linear import Linear
from isthmus.errors import InputError, IsthmusError, OutcomeError
from isthmus.evaluate.batchnorm import statistics
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, check_ends, check_finite, check_like, equal, share
from isthmus.training.memory import Memory, forget
from isthmus.training.progress import Progress, no_progress


def connect(
    objective: Objective,
    a: ParamsLike,
    b: ParamsLike,
    method: Connector | None = None,
    *,
    seed: int = 0,
    throw: bool = False,
    test: Objective | None = None,
    memory: Memory | PathLike[str] | str = forget,
    progress: Progress = no_progress,
) -> Connection:
    """A path from `a` to `b` (state_dicts, modules or checkpoint files) by `method` (default ``Linear()``).

    `method`: a connector with its settings, default ``Linear()``.

    Both ends are checked first: keys, shapes, dtypes, finite values; integers that differ cannot move. The result has
    ``connection.path.start`` = a and ``connection.path.end`` = ``connection.target`` bit for bit, and
    f(target) = f(b). A method whose theorem needs a loss that is convex in the outputs (``method.about.convex``)
    refuses any other. A method that does not succeed says so in ``connection.outcome``; with ``throw=True`` that
    raises ``OutcomeError``. The same seed gives the same path.

    `test`: a second data set, for a method that it judges (``method.judged``). `memory`: a folder for the state of long
    work (or a ``Memory`` of this call alone), from which the same call goes on after it was killed, to the same result.

    Errors: ``InputError`` for ends that do not fit and for a loss that the method's theorem does not cover,
    ``UnsupportedError`` for a network that the method refuses, ``OutcomeError`` where `throw` asks for it.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> connection = connect(objective, {"weight": torch.eye(2)}, {"weight": 3 * torch.eye(2)})
    >>> connection.path.at(0.5)["weight"][0, 0], str(connection.outcome)[:11]
    (tensor(2.), 'constructed')
    """
    check_kinds(connect, locals(), but=["method"])
    method = Linear() if method is None else method
    _check_method(method, objective, test)
    start, goal = _checked(objective, a, b)
    begin = time.perf_counter()
    try:
        generator = torch.Generator().manual_seed(seed)
        kept = memory if isinstance(memory, Memory) else _memory_in(memory, objective, start, goal, method, test, seed)
        found = method.find(Task(objective, start, goal, generator, test, progress, kept))
    except IsthmusError as e:
        e.add_note(f"while connecting with {type(method).__name__}")
        raise
    seconds = time.perf_counter() - begin
    _check_found(found, method, objective, start, goal)
    if throw and not found.outcome.ok:
        raise OutcomeError(f"{type(method).__name__}: {found.message}")
    bn = (found.path.bn or method.statistics) if statistics(objective) else None
    stats = {"method": describe(method), "seed": seed, "objective": objective.describe(), **found.stats}
    stats |= {} if bn is None else {"bn": bn}
    return replace(found, path=replace(found.path, bn=bn), stats=stats, seconds=seconds)


def _check_method(method: object, objective: Objective, test: Objective | None) -> None:
    if not isinstance(method, Connector):
        wrong = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
        raise InputError("method", expected="a connector such as im.Dropout()", got=wrong)
    if needs_convex(method):
        check_convex(objective, type(method).__name__)
    if test is not None and not method.judged:
        raise InputError("test", expected="a method that searches, such as StringSampling(on='test')", got=repr(method))


def _checked(objective: Objective, a: ParamsLike, b: ParamsLike) -> tuple[Params, Params]:
    """Both ends as copies: a state_dict shares memory with its module, and training on would move the path's end.

    What was read from a file here is nobody else's.
    """
    start, goal = objective.check(a, "a"), objective.check(b, "b")
    check_ends(start, goal)
    for what, end in (("a", start), ("b", goal)):  # masks may be infinite, weights that are trained may not
        check_finite({k: end[k] for k in objective.parameter_names if k in end}, what)
    objective.check_path((start, goal), "b")
    start = _copied(start, {} if isinstance(a, str | PathLike) else start)
    return start, _copied(share(goal, start), {} if isinstance(b, str | PathLike) else goal)


def _copied(params: Params, held: Params) -> Params:
    """With copies of the tensors that others hold; one tensor under several names stays one."""
    theirs, copies = {id(v) for v in held.values()}, dict[int, Tensor]()
    for v in params.values():
        if id(v) in theirs and id(v) not in copies:
            copies[id(v)] = v.clone()
    return {k: copies.get(id(v), v) for k, v in params.items()}


def _memory_in(
    folder: PathLike[str] | str, objective: Objective, a: Params, b: Params, method: Connector, test: Objective | None,
    seed: int,
) -> Memory:  # fmt: skip
    from isthmus.storage.state import memory_in  # files stand above the methods

    return memory_in(folder, objective, a, b, method, test=test, seed=seed)


def _check_found(found: Connection, method: Connector, objective: Objective, a: Params, b: Params) -> None:
    """A path has the ends that it promises, and its target computes what b does."""
    check_like(found.target, a, "target")
    if not equal(found.path.start, a) or not equal(found.path.end, found.target):
        raise IsthmusError(f"internal error: {type(method).__name__} returned a path with other ends; please report it")
    if found.target is b or equal(found.target, b):
        return
    few = objective.part(slice(0, 256))
    want, have = few.outputs(b), few.outputs(found.target)
    scale = float(want.abs().max()) or 1.0
    if float((want - have).abs().max()) > 1e4 * torch.finfo(objective.dtype).eps * scale:
        raise IsthmusError("internal error: the target does not compute the function of b; please report it")
