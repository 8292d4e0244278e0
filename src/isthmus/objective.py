"""The loss of a parameter dictionary on a fixed finite data set."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten

from isthmus.errors import InputError, UnsupportedError
from isthmus.examples import Inputs, arguments, as_tensors, cast_inputs, rows
from isthmus.losses import (
    L1,
    NAMED,
    LossFunction,
    Ridge,
    check_class_axis,
    check_labels,
    check_targets,
    wrong_class,
)
from isthmus.params import Params, check_like
from isthmus.program import Program, trace
from isthmus.skeleton import CountBytes, check_modes, skeleton_of, ties_of
from isthmus.structure import Structure, derive_structure, verify


@final
class Objective:
    """The loss of parameters on data, evaluated without ever writing to the user's module.

    loss(params) = mean over the examples of loss(f(x; params), y) + penalty(params).

    `module`: any ``nn.Module`` that returns one tensor, batch first; its mode (train / eval) is taken as it is,
    and dropout or BatchNorm in training mode are refused. `loss`: "cross_entropy", "mse", or a callable
    (outputs, y) -> per-example losses [n], with ``convex=True`` if it is convex in the outputs. `data`: (x, y),
    where x is a tensor, a tuple of tensors (positional arguments) or a dict (keyword arguments), or a
    ``DataLoader`` of such pairs, which is read into memory. `error`: a callable (outputs, y) -> per-example
    errors in [0, 1]; default: wrong class, for integer labels (outputs [n, classes, ...] or, with a callable loss whose
    labels fit only that, [n, ..., classes]). `penalty`: ``Ridge`` or ``L1``. `dtype`: default,
    the wider of the module's and of x's. `memory`: bytes of activations per chunk of examples (a bound, not a
    reservation). `structure`: a hand-written unit structure, verified before use.

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
        loss: str | LossFunction = "cross_entropy",
        data: tuple[Inputs, Tensor] | Iterable[tuple[Inputs, Tensor]] | None = None,
        *,
        convex: bool | None = None,
        penalty: Ridge | L1 | None = None,
        error: LossFunction | None = None,
        dtype: torch.dtype | None = None,
        memory: int = 1 << 28,
        structure: Structure | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputError("module", expected="a torch.nn.Module", got=type(module).__name__)
        if isinstance(loss, str) and loss not in NAMED:
            raise InputError("loss", expected=f"one of {sorted(NAMED)} or a callable", got=repr(loss))
        if data is None:
            raise InputError("data", expected="a pair of tensors (x, y) or a DataLoader", got="nothing")
        if memory <= 0:
            raise InputError("memory", expected="a positive number of bytes", got=memory)
        x, y = as_tensors(data)
        own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        for part in tree_flatten(x)[0]:
            own = torch.promote_types(own, part.dtype) if part.is_floating_point() else own
        self.dtype = dtype or own
        if not self.dtype.is_floating_point:
            raise InputError("dtype", expected="a floating-point dtype", got=self.dtype)
        self._data = (cast_inputs(x, self.dtype), y.to(self.dtype) if y.is_floating_point() else y)
        self._loss_name = loss if isinstance(loss, str) else getattr(loss, "__name__", "callable")
        self._losses = NAMED[loss] if isinstance(loss, str) else loss
        self.convex = True if isinstance(loss, str) else bool(convex)
        self.penalty = penalty
        self.memory = memory
        self._error = error
        self._hand_written = structure
        self._programs: dict[Any, Program | UnsupportedError] = {}
        check_modes(module)
        # the module's structure on meta tensors: it has no weights of its own
        self.skeleton, self._fixed = skeleton_of(module, self.dtype)
        self._like = {k: v for k, v in self.skeleton.state_dict().items()}
        self._ties = ties_of(self.skeleton)
        self.parameter_names = tuple(k for k, _ in self.skeleton.named_parameters())
        state = module.state_dict()
        self._probe(self._zeros() if any(v.is_meta for v in state.values()) else state)

    # -- what it is

    @property
    def data(self) -> tuple[Inputs, Tensor]:
        """The data set, (x, y)."""
        return self._data

    @property
    def num_examples(self) -> int:
        """The number of examples, N."""
        return len(self._data[1])

    @property
    def device(self) -> torch.device:
        """Where the data live; parameters must live there too."""
        return self._data[1].device

    @property
    def has_error(self) -> bool:
        """Whether an error rate is defined: a given one, or class labels."""
        y = self._data[1]
        return self._error is not None or not y.is_floating_point() or self._loss_name == "cross_entropy"

    def describe(self) -> dict[str, Any]:
        """Plain values that say what is measured; stored with every result."""
        return {
            "module": self._module_name,
            "loss": self._loss_name,
            "convex": self.convex,
            "examples": self.num_examples,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "penalty": None if self.penalty is None else repr(self.penalty),
        }

    @property
    def _module_name(self) -> str:
        return type(self.skeleton).__name__

    @property
    def named_loss(self) -> str | None:
        """ "cross_entropy" or "mse" when the loss is that function of this library, else None."""
        return self._loss_name if NAMED.get(self._loss_name) is self._losses else None

    @property
    def program(self) -> Program:
        """The module's exported graph. ``UnsupportedError`` when it cannot be exported."""
        args, kwargs = self._example
        key = (self.dtype, *((v.shape[1:], v.dtype) for v in tree_flatten((args, kwargs))[0]))
        if key not in self._programs:  # shared with the same objective on other data
            try:
                self._programs[key] = trace(self._materialised(), args, kwargs)
            except UnsupportedError as e:
                self._programs[key] = e
        found = self._programs[key]
        if isinstance(found, UnsupportedError):
            raise found.with_traceback(None)
        return found

    @cached_property
    def structure(self) -> Structure:
        """The hidden units of the module, derived from its graph (or hand-written) and verified."""
        if self._hand_written is not None:
            verify(self._hand_written, self._materialised(), *self._example)
            return self._hand_written
        return derive_structure(self._materialised(), *self._example)

    @property
    def _example(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        return arguments(rows(self._data[0], slice(0, min(4, self.num_examples))))

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the exported graphs, which cannot travel; they are made again when they are needed."""
        return self.__dict__ | {"_programs": {}}

    # -- variations

    def cast(self, dtype: torch.dtype) -> Objective:
        """The same objective in another floating-point precision; data are shared where they have it."""
        return self._vary(dtype=dtype)

    def on(self, data: tuple[Inputs, Tensor] | Iterable[tuple[Inputs, Tensor]]) -> Objective:
        """The same module and loss on another data set (a test set, a subset)."""
        return self._vary(data=data)

    def subset(self, n: int) -> Objective:
        """The same objective on the first `n` examples."""
        if not 1 <= n <= self.num_examples:
            raise InputError("n", expected=f"1 to {self.num_examples} examples", got=n)
        return self.on((rows(self._data[0], slice(0, n)), self._data[1][:n]))

    def _vary(self, **changes: Any) -> Objective:
        options: dict[str, Any] = {
            "loss": self.named_loss or self._losses,
            "data": self._data,
            "convex": self.convex,
            "penalty": self.penalty,
            "error": self._error,
            "dtype": self.dtype,
            "memory": self.memory,
            "structure": self._hand_written,
        }
        new = Objective(self.skeleton, **(options | changes))
        new._programs = self._programs
        if "structure" in self.__dict__:  # units depend neither on the data nor on the precision
            new.__dict__["structure"] = self.structure
        return new

    # -- parameters

    def check(self, params: Mapping[str, Tensor], what: str = "params") -> Params:
        """`params` as this objective evaluates them: a state_dict of the module, checked key by key.

        Narrower floating-point types are widened (exact); wider ones are refused, as are tied parameters that
        differ. Tied entries share one tensor in the result.
        """
        wide = {}
        for name, value in params.items():
            if isinstance(value, Tensor) and value.is_floating_point() and name in self._like:
                if torch.promote_types(value.dtype, self.dtype) != self.dtype:
                    raise InputError(
                        f"{what}[{name!r}]",
                        expected=f"{self.dtype}, the objective's precision",
                        got=value.dtype,
                        instead=f"objective.cast({value.dtype})",
                    )
                value = value.to(self.dtype)
            wide[name] = value.detach() if isinstance(value, Tensor) and value.requires_grad else value
        check_like(wide, self._expected, what)
        for alias, name in self._ties.items():
            if wide[alias] is not wide[name] and not torch.equal(wide[alias], wide[name]):
                raise InputError(
                    f"{what}[{alias!r}]", expected=f"the tensor it is tied to, {name!r}", got="other values"
                )
            wide[alias] = wide[name]
        return wide

    @cached_property
    def _expected(self) -> Params:
        # meta tensors cannot carry the device that is wanted, so stand-ins with no memory do
        return {k: torch.empty((), dtype=v.dtype, device=self.device).expand(v.shape) for k, v in self._like.items()}

    # -- values

    def outputs(self, params: Mapping[str, Tensor]) -> Tensor:
        """f(x; params) for every example, [N, ...]."""
        params = self.check(params)
        with torch.no_grad():
            return torch.cat([self.forward(params, x) for x, _ in self._chunks()])

    def losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """The loss of every example, [N], without the penalty."""
        params = self.check(params)
        with torch.no_grad():
            return torch.cat([self._losses(self.forward(params, x), y) for x, y in self._chunks()])

    def loss(self, params: Mapping[str, Tensor]) -> float:
        """The mean loss plus the penalty; chunk sums are added in float64."""
        return self.measure(params)[0]

    def error(self, params: Mapping[str, Tensor]) -> float:
        """The mean error rate in [0, 1]; NaN where no error is defined."""
        return self.measure(params)[1]

    def measure(self, params: Mapping[str, Tensor]) -> tuple[float, float]:
        """(loss, error) from one pass over the data."""
        params = self.check(params)
        with torch.no_grad():
            total = self.of_outputs((self.forward(params, x), y) for x, y in self._chunks())
        return total[0] + self.penalty_of(params), total[1]

    def of_outputs(self, parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """(mean loss without penalty, error rate) of outputs that were computed elsewhere, chunk by chunk."""
        loss = error = 0.0
        n = 0
        for outputs, y in parts:
            loss += float(self._losses(outputs, y).double().sum())
            error += float(self._errors(outputs, y).double().sum()) if self.has_error else float("nan")
            n += len(y)
        return loss / n, error / n

    def penalty_of(self, params: Mapping[str, Tensor]) -> float:
        """The penalty alone; 0 where there is none."""
        return 0.0 if self.penalty is None else float(self.penalty(params, self.parameter_names))

    def batch_loss(self, params: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """The mean loss of some examples plus the penalty: a scalar that carries gradients to `params`."""
        x, y = rows(self._data[0], index), self._data[1][index]
        loss = self._losses(self.forward(params, x), y).mean()
        return loss if self.penalty is None else loss + self.penalty(params, self.parameter_names).to(loss.dtype)

    def example_losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The per-example losses [n] of given outputs; carries gradients."""
        return self._losses(outputs, y)

    def _errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (self._error or wrong_class)(outputs, y)

    def forward(self, params: Mapping[str, Tensor], x: Inputs, module: nn.Module | None = None) -> Tensor:
        """f(x; params) for some examples; carries gradients. `module`: a changed copy of the `skeleton` to run."""
        args, kwargs = arguments(x)
        once = {k: v for k, v in params.items() if k not in self._ties}  # functional_call ties the rest itself
        return functional_call(module or self.skeleton, {**self._fixed, **once}, args, kwargs, strict=True)

    def _chunks(self) -> Iterator[tuple[Inputs, Tensor]]:
        x, y = self._data
        for i in range(0, len(y), self.chunk):
            yield rows(x, slice(i, i + self.chunk)), y[i : i + self.chunk]

    @cached_property
    def chunk(self) -> int:
        """Examples per forward pass, so that the activations of one pass stay below `memory` bytes."""
        return int(max(1, min(self.num_examples, self.memory // self.bytes_each)))

    @cached_property
    def bytes_each(self) -> int:
        """The bytes that one example's forward pass makes, all operations together."""
        zeros, index = self._zeros(), torch.zeros(4, dtype=torch.int64, device=self.device)
        totals = []
        for n in (2, 4):  # the difference leaves out what does not grow with the batch, such as views of weights
            with torch.no_grad(), CountBytes() as counter:
                self.forward(zeros, rows(self._data[0], index[:n]))
            totals.append(counter.total)
        return max(1, (totals[1] - totals[0]) // 2)

    # -- checks

    def _probe(self, params: Params) -> None:
        """Two passes over a few examples must agree, and each example's output must not depend on the others."""
        params = {k: v.to(self.device, self.dtype if v.is_floating_point() else v.dtype) for k, v in params.items()}
        n = min(4, self.num_examples)
        x, y = rows(self._data[0], slice(0, n)), self._data[1][:n]
        with torch.no_grad():
            try:
                first, second = self.forward(params, x), self.forward(params, x)
            except (RuntimeError, ValueError, TypeError, IndexError) as e:
                first_line = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
                raise InputError("data", expected=f"examples that {self._module_name} accepts", got=first_line) from e
            if not isinstance(first, Tensor):
                raise UnsupportedError(
                    self._module_name,
                    f"its forward returns {type(first).__name__}, not one tensor",
                    "wrap it in a module that does",
                )
            if first.dim() == 0 or len(first) != n or not first.numel():
                raise UnsupportedError(self._module_name, f"{n} examples give an output of shape {tuple(first.shape)}")
            if not torch.equal(first, second) and bool(first.isfinite().all()):
                raise UnsupportedError(
                    self._module_name, "two passes over the same data differ (forward is random)", "call module.eval()"
                )
            alone = self.forward(params, rows(x, slice(0, 1)))
        scale = float(first.abs().max()) or 1.0
        if n > 1 and float((alone - first[:1]).abs().max()) > 1e-3 * scale:
            raise UnsupportedError(
                self._module_name, "an example's output depends on the rest of its batch", "call module.eval()"
            )
        if self._loss_name in NAMED:
            check_targets(self._loss_name, first, y)
        if self._loss_name == "cross_entropy":
            check_labels(first.shape[1], self._data[1])
        elif self.has_error and self._error is None:
            check_class_axis(first, y)
        if (shape := tuple(self._losses(first, y).shape)) != (n,):
            raise InputError("loss", expected=f"one value per example, shape ({n},)", got=shape)

    def _zeros(self) -> Params:
        return {
            k: torch.full(v.shape, int(k.endswith("running_var")), dtype=v.dtype, device=self.device)
            for k, v in self._like.items()
        }

    def _materialised(self) -> nn.Module:
        zeros, memo = self._zeros(), {}
        for name, p in self.skeleton.named_parameters():
            memo[id(p)] = nn.Parameter(zeros[name], requires_grad=p.requires_grad)
        for name, b in self.skeleton.named_buffers():
            memo[id(b)] = zeros[name] if name in zeros else b.clone()
        return copy.deepcopy(self.skeleton, memo)
