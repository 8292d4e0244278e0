"""What a call may not do: take longer than it may, or change anything of the user's."""

from __future__ import annotations

import random
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from tests.long.odd import Odd


class Late(BaseException):
    """The time is over; no `Exception`, so that nothing takes it for an error of its own."""


def _late(signum: int, frame: FrameType | None) -> None:
    raise Late


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """`Late` in whatever takes more processor seconds; the timer of a test is another one."""
    before = signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def state(odd: Odd) -> dict[str, Any]:
    """Everything that must stay, with copies of what could be written."""
    module = odd.case.module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a gradient is asked of what is no leaf
        tensors = {
            "module": _held(module.state_dict(keep_vars=True)),
            "a": _held(odd.a),
            "b": _held(odd.b),
            "data": _held({"x": odd.case.inputs, "y": odd.case.y}),
        }
    return tensors | {
        "modes": [part.training for part in module.modules()],
        "attributes": [sorted(part.__dict__) for part in module.modules()],
        "random numbers": (torch.get_rng_state().tolist(), random.getstate()),
        "settings": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
    }


def _held(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        k: (id(v), v.requires_grad, v.stride(), _bits(v), None if v.grad is None else _bits(v.grad))
        for k, v in tensors.items()
    }


def _bits(v: Tensor) -> bytes:
    return v.detach().contiguous().numpy().tobytes()


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is no longer as it was."""
    return [f"changed: {name}" for name, kept in before.items() if after[name] != kept]
