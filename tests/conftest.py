import gc
import os
from collections.abc import Hashable, Mapping
from types import FunctionType
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor, nn
from xdist.scheduler import LoadScopeScheduling

import isthmus.objective.graphs
import isthmus.structure.shorter
import isthmus.structure.verify
from isthmus.program.export import Program, trace

torch.set_num_threads(1)
os.fsync = lambda handle: None  # tests end processes, not machines
os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's workers starve beside the other tests

# no deadline: times on a shared machine say nothing; the same examples on every run, more of them on request
settings.register_profile("isthmus", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "isthmus"))


# two fifths of the time of the tests went into exporting the same few networks again and again
_KNOWN: dict[Hashable, Program] = {}


def _told(module: nn.Module, given: Mapping[int | str, Any]) -> Hashable | None:
    """What decides the program of a module whose parts hold plain values and parameters alone; None for any other."""
    parts = dict(module.named_modules(remove_duplicate=False))
    settings_of = {name: _settings(part) for name, part in parts.items()}
    if None in settings_of.values() or not all(isinstance(x, Tensor) for x in given.values()):
        return None
    state = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    first = {id(v): k for k, v in reversed(state.items())}
    held = tuple((k, first[id(v)], v.shape, v.dtype, v.device) for k, v in state.items())
    return tuple(settings_of.items()), held, tuple((k, x.shape, x.dtype, x.device) for k, x in given.items())


def _settings(part: nn.Module) -> Hashable | None:
    """The class and its plain values; None if something else hangs on it, or a buffer that no state holds."""
    found = {k: v for k, v in vars(part).items() if k not in ("_parameters", "_buffers", "_modules") and v != {}}
    plain = all(isinstance(v, int | float | str | tuple | set | None) for v in found.values())
    if not plain or part._non_persistent_buffers_set:
        return None
    # a test may have put another function in the place of a method
    own = [c for c in type(part).__mro__ if not c.__module__.startswith("torch.")]
    methods = tuple(v for c in own for v in vars(c).values() if isinstance(v, FunctionType))
    return (type(part), methods, *((k, str(v)) for k, v in sorted(found.items())))


def _trace_once(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, every_batch: bool = True
) -> Program:
    given: dict[int | str, Any] = {i: x for i, x in enumerate(args)}
    told = _told(module, given | dict(kwargs or {}))
    if told is None:
        return trace(module, args, kwargs, every_batch=every_batch)
    key = (told, every_batch)
    if key not in _KNOWN:
        _KNOWN[key] = trace(module, args, kwargs, every_batch=every_batch)
    return _KNOWN[key]


for _file in (isthmus.structure, isthmus.structure.verify, isthmus.structure.shorter, isthmus.objective.graphs):
    _file.trace = _trace_once  # type: ignore[attr-defined]

# the dear files: their tests are shared out, by what they are about or one by one
_BY_PARAMETER = (
    *("laws/test_methods.py", "certify/test_forms.py", "certify/test_soundness.py"),
    *("structure/test_derive.py", "structure/test_units.py", "program/test_export.py"),
)
_APART = ("laws/test_memory.py", "laws/test_generated_modules.py", "structure/test_architectures.py")
# to import transformers takes seconds, in each worker that does
_TRANSFORMERS = ("test_hugging_face.py", "storage/test_adapters.py", "certify/test_modern.py")


class _Together(LoadScopeScheduling):
    """Tests that share what is made once go to one worker: a file, a network, what a method makes of a problem."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if file.endswith(_BY_PARAMETER):
            return nodeid.split("[")[-1]
        if file.endswith(_TRANSFORMERS):
            return "transformers"
        return nodeid if file.endswith(_APART) else file


class _Seeded:
    """Networks that a test or an example, or what tests share, draws without a seed are the same in every run."""

    def pytest_runtest_setup(self) -> None:
        torch.manual_seed(0)


gc.set_threshold(10_000, 20, 20)  # ten thousand tests are many objects, and none of them is ever garbage


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(_Seeded())  # a hook of this file would leave out the examples in src


def pytest_xdist_make_scheduler(config: Any, log: Any) -> LoadScopeScheduling:
    return _Together(config, log)


# registering a device changes all of torch, for good: tests/test_device.py runs these in a process of its own
collect_ignore = [] if "ISTHMUS_PRETENDED_DEVICE" in os.environ else ["on_a_device.py", "pretended_device.py"]
