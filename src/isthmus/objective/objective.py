"""The loss of a parameter dictionary on a fixed finite data set."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from isthmus.errors import InputError, UnsupportedError
from isthmus.kinds import check_kind, check_kinds
from isthmus.objective import criterion, named
from isthmus.objective import data as datasets
from isthmus.objective import skeleton as skeletons
from isthmus.objective.adapt import fitted, of_targets
from isthmus.objective.batches import Data
from isthmus.objective.data import Inputs
from isthmus.objective.described import describe
from isthmus.objective.given import ParamsLike, tensors_of
from isthmus.objective.graphs import Programs
from isthmus.objective.losses import L1, LossFunction, Ridge
from isthmus.objective.matching import renamed, tied
from isthmus.objective.named import CrossEntropy
from isthmus.objective.probe import accepts, check_together, examine
from isthmus.objective.source import Evaluate, Held, Numbers, open_source
from isthmus.objective.writes import Writes, call, without_extra
from isthmus.params import Params, check_like, check_moves, in_dtype, widen
from isthmus.program.adapted import Adapted, Forward, Manner
from isthmus.program.copied import name_of
from isthmus.program.export import Program
from isthmus.shown import count, line, plural
from isthmus.structure import Structure, verify

MEMORY = 1 << 28
"""Bytes of activations per chunk of examples, unless other ones are given."""


@final
class Objective:
    """The loss of parameters on data, evaluated without ever writing to the user's module.

    loss(params) = mean over the examples of loss(f(x; params), y) + penalty(params).

    `module`: any ``nn.Module``, batch first; its mode (train / eval) is taken as it is, and refused where training mode
    changes the outputs or may. What forward writes (into its inputs, parameters, buffers or attributes) is written
    into copies and forgotten: every evaluation is that of a first call. Buffers that hold numbers (running statistics,
    the u and v of spectral norm) are moved along paths like weights. `output`: the entry of what it returns that is
    f, by name or place; default: the ``logits``, the first tensor of a tuple, the only tensor of anything else.

    `data`: (x, y), where x is a tensor, a tuple of tensors (positional arguments) or a dict (keyword arguments); a
    dict or a tuple of inputs and targets; a ``Dataset`` or ``DataLoader`` of such. `targets`: the name or place of the
    targets, which the module does not get; default: labels, label, targets, target or y in a dict, else the last part.
    `forward`: (module, batch) -> what the module returns, for any other batches; a callable loss then gets the whole
    batch in place of targets, unless these are named. Arrays and lists are taken for tensors, and loaders are read
    into memory. `stream`: read them again at every pass instead, in one order; default: where `memory` is given and
    they are larger. `memory`: bytes of activations per chunk of examples (a bound, not a reservation), default 256 MiB.
    `dtype`: default float64 if the module or x has it, else float32 (half precisions are widened, which is exact);
    in a half precision the module is evaluated as it is and its outputs are compared in float32.
    `evaluate`: params -> {"loss": ..., "error": ...} in place of loss and data, where only numbers can be had.
    `penalty`: ``Ridge`` or ``L1``. `structure`: a hand-written unit structure, verified before use.

    `loss`, one of
    - a name of ``NAMES``, "cross_entropy" (labels [n, ...] or probabilities, outputs [n, classes, ...]) or "mse", say:
      of an example, the mean over its positions that count or its entries; or a ``CrossEntropy`` with options;
    - a loss of torch. The objective is what it gives on the whole data set at once: for reduction="mean" every position
      that counts weighs the same (or its class's weight), however many an example has; "none" averages as names do;
    - a callable (outputs, y) -> losses [n], with ``convex=True`` if it is convex in the outputs.

    `error`: a callable (outputs, y) -> errors in [0, 1], [n]; default: the wrong class where y holds labels, averaged
    as the loss is, and the wrong sign for logits. `ignore_index`: the label that counts nowhere, -100 as in torch;
    examples without any other label have no weight. `class_axis`: of the outputs; default 1 (as in torch) or -1,
    whichever the labels fit. Both hold for the named loss and for the default error.

    Errors: ``InputError`` for data that do not fit, ``UnsupportedError`` for a module whose output changes
    between two passes or depends on the other examples of the batch.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(nn.Linear(2, 2, bias=False), data=(x, y))
    >>> round(objective.loss({"weight": torch.zeros(2, 2)}), 4), objective.error({"weight": torch.eye(2)})
    (0.6931, 0.0)
    """

    def __init__(
        self,
        module: nn.Module,
        loss: str | CrossEntropy | LossFunction = "cross_entropy",
        data: Data | None = None,
        *,
        convex: bool | None = None,
        penalty: Ridge | L1 | None = None,
        error: LossFunction | None = None,
        ignore_index: int | None = None,
        class_axis: int | None = None,
        targets: str | int | None = None,
        forward: Forward | None = None,
        output: str | int | None = None,
        dtype: torch.dtype | None = None,
        memory: int | None = None,
        evaluate: Evaluate | None = None,
        stream: bool | None = None,
        structure: Structure | None = None,
        _writes: Writes | None = None,
    ) -> None:
        check_kinds(Objective.__init__, locals(), but=["loss", "data"])
        skeletons.check_kind(module)
        named.check_loss(loss)
        self._called = {"targets": targets, "forward": forward, "output": output, "stream": stream}
        self._loss = copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss  # later changes do not matter
        self._labelled = {"error": error, "ignore_index": ignore_index, "class_axis": class_axis}
        self.penalty = penalty
        self._limit, self.memory = memory, MEMORY if memory is None else memory
        self._hand_written = structure
        self.graphs = Programs()
        if evaluate is not None:
            told = {"data": data, "loss": loss, "convex": convex, "structure": structure}
            data = Numbers.of(module, evaluate, told | self._called | self._labelled)
        self.dtype, self.source = open_source(module, data, self._loss, self._called, dtype=dtype, limit=memory)
        skeletons.check_modes(module)
        views = self._take_structure(module)
        self._writes = Writes() if _writes is None else _writes
        if isinstance(self.source, Numbers):
            self.criterion = criterion.UNSEEN
            return
        manner = module.manner if isinstance(module, Adapted) else Manner(forward, None, output)
        self._manner = replace(manner, batch=self.source.batch)
        y, batch = self.source.targets(), self.source.batch
        few = self._probe(None if _writes is not None else module.state_dict(), skeletons.storages(module) | views)
        judged = self._labelled | {"error": of_targets(error, y, batch)}
        self.criterion = criterion.read(of_targets(self._loss, y, batch), few, y, convex=convex, **judged)

    def _take_structure(self, module: nn.Module) -> set[int]:
        """The module on meta tensors, without weights, and its names; gives the memory of views of its weights."""
        self.skeleton, self._fixed, views = skeletons.skeleton_of(module, self.dtype, self.device)
        state = self.skeleton.state_dict()
        self._extra = {k: v for k, v in state.items() if k.endswith(skeletons.EXTRA)}
        self._like = {k: v for k, v in state.items() if k not in self._extra}
        self._ties = skeletons.ties_of(self.skeleton)
        self._shares, self._untied = skeletons.shares(self.skeleton), {k for k in self._like if k not in self._ties}
        self.parameter_names = tuple(k for k, _ in self.skeleton.named_parameters())
        return views

    # -- what it is

    def __repr__(self) -> str:
        parameters = plural(count({k: self._like[k] for k in self.parameter_names}), "parameter")
        told = named.describe(self._loss) | self.source.describe()
        return line(self, name_of(self.skeleton), str(told["loss"]), *self.source.words(), parameters)

    @property
    def data(self) -> tuple[Inputs, Tensor]:
        """The data set, (x, y). Errors: ``UnsupportedError`` where it is not in memory."""
        return self.source.held()

    @property
    def num_examples(self) -> int:
        """The number of examples, N."""
        return self.source.number

    @property
    def in_memory(self) -> bool:
        """Whether the examples are."""
        return isinstance(self.source, Held)

    @property
    def passes(self) -> int:
        """How often streamed data were read to their end; 0 for data in memory."""
        return self.source.passes

    @property
    def device(self) -> torch.device:
        """Where the data live; parameters must live there too."""
        return self.source.device

    @property
    def has_error(self) -> bool:
        """Whether an error rate is defined: a given one, or the wrong class or sign."""
        return self.criterion.errors is not None

    @property
    def convex(self) -> bool:
        """Whether the loss is convex in the outputs."""
        return self.criterion.convex

    def describe(self) -> dict[str, Any]:
        """Plain values that say what is measured; stored with every result.

        With the module they are all that is needed to make the objective again, if its loss is a named one ("named")
        and its error the default (None). "digest": of the examples, see ``digest_of_data``.
        """
        return describe(self)

    @cached_property
    def _digest(self) -> str | None:
        return None if isinstance(self.source, Numbers) else self.source.digest(self.dtype)

    @property
    def named_loss(self) -> str | None:
        """Its name when the loss is "cross_entropy" or "mse" as this library has them, else None."""
        return self.criterion.named

    @property
    def program(self) -> Program:
        """The module's exported graph. ``UnsupportedError`` when it cannot be exported."""
        return self.graphs.of(self.dtype, self._example, self._materialised)

    @cached_property
    def structure(self) -> Structure:
        """The hidden units of the module, derived from its graph (or hand-written) and verified."""
        if self._hand_written is not None:
            verify(self._hand_written, self._materialised(), *self._example)
            return self._hand_written
        return self.graphs.structure(self.dtype, self._example, self._materialised)

    @property
    def _example(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        return datasets.arguments(datasets.rows(self.source.few()[0], slice(0, min(4, self.num_examples))))

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the exported graphs, which cannot travel; they are made again when they are needed."""
        return self.__dict__ | {"graphs": Programs()}

    # -- variations

    def cast(self, dtype: torch.dtype) -> Objective:
        """The same objective in another floating-point precision; data are shared where they have it."""
        return self._vary(dtype=dtype)

    def on(self, data: Data) -> Objective:
        """The same module and loss on another data set (a test set, a subset)."""
        self.source.few()  # there must be some
        return self._vary(data=data)

    def subset(self, n: int) -> Objective:
        """The same objective on the first `n` examples."""
        check_kind(n, int, "n")
        self.source.few()  # there must be some
        if not 1 <= n <= self.num_examples:
            raise InputError("n", expected=f"1 to {self.num_examples} examples", got=n)
        return self._vary(data=self.source.first(n))

    def part(self, index: slice) -> Objective:
        """Some examples, each with the value it has in the whole: means over parts, weighted by size, give its mean."""
        new = copy.copy(self)
        new.graphs = self.graphs
        x, y = datasets.rows(self.data, index)
        new.source = Held(x, y, self.source.batch)
        new.__dict__.pop("chunk", None)
        new.__dict__.pop("_digest", None)
        return new

    def _vary(self, **changes: Any) -> Objective:
        options: dict[str, Any] = {
            "loss": self._loss, "data": self.source, "convex": self.convex, "penalty": self.penalty,
            **self._labelled, **self._called, "dtype": self.dtype, "memory": self._limit,
            "structure": self._hand_written, "_writes": self._writes,
        }  # fmt: skip
        new = Objective(self.skeleton, **(options | changes))
        if "data" not in changes and "loss" not in changes:  # of a part, it is that of the whole
            new.criterion = criterion.of_the_whole(self.criterion, new.criterion, error="error" in changes)
        new.graphs = self.graphs
        if "structure" in self.__dict__:  # units depend neither on the data nor on the precision
            new.__dict__["structure"] = self.structure
        return new

    # -- parameters

    def check(self, params: ParamsLike, what: str = "params") -> Params:
        """`params` (a state_dict of the module, a module, or a checkpoint file) as this objective evaluates them.

        Narrower floating-point types are widened (exact); wider ones are refused, as are tied parameters that
        differ. Tied entries share one tensor in the result; of tied names one is enough. Names that have one prefix
        before those of the module, or lack that of a wrapper, are taken for the module's where nothing else is left.
        """
        plain = without_extra(tensors_of(params, self, what), self._extra, what)
        own = renamed(plain, self._like, self._ties, what)
        wide = {k: widen(v, self.dtype, f"{what}[{k!r}]") if k in self._like else v for k, v in own.items()}
        check_like(wide, self._expected, what)
        return tied(wide, self._ties, what)

    def check_path(self, points: Sequence[Mapping[str, Tensor]], what: str = "path") -> tuple[Params, ...]:
        """Points of one path as this objective evaluates them (``check``).

        Errors: as ``check``; integer or boolean tensors that differ, unless they are ``idle``: they cannot move.
        """
        checked = tuple(self.check(p, what) for p in points)
        check_moves(checked, self.idle, what)
        return checked

    def idle(self, name: str) -> bool:
        """Whether no output depends on the integer tensor: counters of normalisations, what the program never reads."""
        try:
            return name in skeletons.counters(self.skeleton) or not self.program.reads(name)
        except UnsupportedError:
            return False

    @cached_property
    def _expected(self) -> Params:
        return skeletons.stand_ins(self._like, self.device)

    # -- values

    def outputs(self, params: ParamsLike) -> Tensor:
        """f(x; params) for every example, [N, ...]."""
        params = self.check(params)
        with torch.no_grad():
            return torch.cat([self.forward(params, x) for x, _ in self.source.chunks(self.chunk)])

    def losses(self, params: ParamsLike) -> Tensor:
        """The loss of every example, [N], without the penalty."""
        params = self.check(params)
        with torch.no_grad():
            parts = self.source.chunks(self.chunk)
            return torch.cat([self.example_losses(self.forward(params, x), y) for x, y in parts])

    def loss(self, params: ParamsLike) -> float:
        """The mean loss plus the penalty; chunk sums are added in float64."""
        return self.measure(params)[0]

    def error(self, params: ParamsLike) -> float:
        """The mean error rate in [0, 1]; NaN where no error is defined."""
        return self.measure(params)[1]

    def measure(self, params: ParamsLike) -> tuple[float, float]:
        """(loss, error) from one pass over the data."""
        params = self.check(params)
        loss, error = self.means(params)
        return loss + self.penalty_of(params), error

    def means(self, params: Params, each: criterion.Each | None = None) -> tuple[float, float]:
        """(mean loss without penalty, error rate) at checked parameters, from one pass over the data."""
        if isinstance(self.source, Numbers):
            return self.source.measure(params)
        with torch.no_grad():
            return self.of_outputs(((self.forward(params, x), y) for x, y in self.source.chunks(self.chunk)), each)

    def of_outputs(
        self, parts: Iterable[tuple[Tensor, Tensor]], each: criterion.Each | None = None
    ) -> tuple[float, float]:
        """(mean loss without penalty, error rate) of outputs made elsewhere, chunk by chunk; `each` gets the values."""
        return self.criterion.means(((self._wide(outputs), y) for outputs, y in parts), each)

    def penalty_of(self, params: Mapping[str, Tensor]) -> float:
        """The penalty alone; 0 where there is none."""
        return 0.0 if self.penalty is None else float(self.penalty(params, self.parameter_names))

    def batch_loss(self, params: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """The mean loss of some examples plus the penalty: a scalar that carries gradients to `params`."""
        x, y = self.source.at(index)
        loss = self.example_losses(self.forward(params, x), y).mean()
        return loss if self.penalty is None else loss + self.penalty(params, self.parameter_names).to(loss.dtype)

    def example_losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The per-example losses [n] of given outputs; carries gradients."""
        return self.criterion.values(self._wide(outputs), y)

    def _wide(self, outputs: Tensor) -> Tensor:
        return in_dtype(outputs, datasets.wide(self.dtype))

    def forward(self, params: Mapping[str, Tensor], x: Inputs, module: nn.Module | None = None) -> Tensor:
        """f(x; params) for some examples; carries gradients. `module`: a changed copy of the `skeleton` to run."""
        once = {k: v for k, v in params.items() if k not in self._ties}  # functional_call ties the rest itself
        walk = module is not None or once.keys() != self._untied
        return call(module or self.skeleton, {**self._fixed, **once}, x, self._writes, walk, walk or self._shares)

    @cached_property
    def chunk(self) -> int:
        """Examples per forward pass, so that the activations of one pass stay below `memory` bytes."""
        return int(max(1, min(self.num_examples, self.memory // self.bytes_each)))

    @cached_property
    def bytes_each(self) -> int:
        """The bytes that one example's forward pass makes, all operations together."""
        zeros, x = self._zeros(), self.source.few()[0]
        index = torch.zeros(4, dtype=torch.int64, device=self.device)
        return skeletons.bytes_each(lambda n: self.forward(zeros, datasets.rows(x, index[:n])))

    def _probe(self, state: Params | None, memory: set[int]) -> Tensor:
        """The outputs of a few examples, and all that forward does with them; without a `state` it only runs."""
        few = self.source.few()[0]
        untied = {k: v for k, v in self._zeros().items() if k not in self._ties}
        whole = {**self._fixed, **untied}
        self.skeleton = fitted(self.skeleton, self._manner, whole, few)
        if state is None:
            return self._wide(accepts(self.skeleton, whole, few, self._writes)[:4])
        own = {k: state[k].to(v) for k, v in untied.items() if not state[k].is_meta}
        points = skeletons.points(whole, own, untied, self.parameter_names)
        self._writes, first = examine(self.skeleton, points, few, memory)
        if self.chunk > len(first):
            check_together(self.skeleton, points, self.source.head(self.chunk)[0], self._writes)
        return self._wide(first[:4])

    def _zeros(self) -> Params:
        return skeletons.zeros(self._like, self.device)

    def _materialised(self) -> nn.Module:
        return skeletons.materialised(self.skeleton, self._zeros())
