"""The device that work is done on: chosen by name, and its random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from isthmus.errors import InputError


def device_of(name: str, what: str = "--device") -> torch.device:
    """The device of that name; "auto" is a GPU where torch has one, else the CPU.

    Errors: ``InputError`` about `what`, the option or argument, for a device that torch does not have here.

    >>> device_of("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise InputError(what, expected="auto, cpu or a device that torch has here", got=repr(name)) from e


@contextmanager
def seeded_global(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators of the host and of `device`, seeded for a while; afterwards they are as before.

    Dropout layers draw from them: they know no generator of their own.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
