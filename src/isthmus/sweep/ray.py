"""Work on Ray Core: several processes of this machine, or a cluster that runs already."""

from __future__ import annotations

import importlib
import ipaddress
import os
import pickle
import secrets
import shutil
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isthmus.checks import check_whole
from isthmus.errors import InputError, IsthmusError, MissingExtraError
from isthmus.kinds import check_fields, check_kind
from isthmus.sweep.base import Engine, Failed, Item, Shared, one_thread

_STORE = 100_000_000  # bytes of Ray's object store on this machine: items are small
_IN_FLIGHT = 256  # items handed to Ray at a time, so that the driver's memory does not grow with their number


@dataclass(frozen=True)
class Ray(Engine):
    """`workers` processes on this machine, or with `address` the Ray cluster there ("auto", or HOST:PORT).

    Each item takes `cpus`, `gpus` and `resources`; one whose worker is killed is tried again, `retries` times.
    Ray runs with token authentication, without dashboard or usage statistics. On this machine it listens on the
    loopback interface only, with a token of its own; a cluster's token comes from RAY_AUTH_TOKEN, from
    RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, and its machines must see the results folder under the same path.
    """

    workers: int = 2
    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    retries: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole(self, "workers")
        check_whole(self, "retries", least=0)
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus), *self.resources.items()):
            check_kind(value, float, name)
            if not 0 <= value < float("inf"):
                raise InputError(name, expected="a number >= 0", got=value)

    @property
    def name(self) -> str:
        """What the record of a cell says."""
        return "ray"

    @property
    def at_once(self) -> int:
        """The processes on this machine; of a cluster, the items for which it has resources."""
        if self.address is None:
            return self.workers
        with self._session() as ray:
            held = ray.cluster_resources()
        needs = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return max(1, min((int(held.get(k, 0) / v) for k, v in needs.items() if v > 0), default=1))

    def map(
        self,
        function: Callable[[Shared, Item], Any],
        shared: Shared,
        items: Sequence[Item],
        after: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """As soon as what they come after is done, in the order in which they finish."""
        if not items:
            return
        with self._session() as ray:
            call = ray.remote(_call).options(
                num_cpus=self.cpus, num_gpus=self.gpus, resources=dict(self.resources) or None, max_retries=self.retries
            )
            common = [ray.put((function, shared, os.getcwd()))]  # in a list, for the worker to fetch it once
            queue = _Queue(after or [()] * len(items))
            running: dict[Any, int] = {}
            while queue.ready or running:
                while queue.ready and len(running) < _IN_FLIGHT:
                    i = queue.ready.popleft()
                    running[call.remote(common, items[i])] = i
                for reference in ray.wait(list(running), num_returns=1)[0]:
                    i = running.pop(reference)
                    value = _value(ray, reference)
                    queue.finish(i)
                    del reference
                    yield i, value

    @contextmanager
    def session(self) -> Iterator[Any]:
        """Ray for the time of several ``map``."""
        with self._session() as ray:
            _HELD.append(self)
            try:
                yield ray
            finally:
                _HELD.pop()

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """Ray, started or connected for the time of one ``map``, or that of the ``session`` around it."""
        ray = _import(local=self.address is None)
        if self in _HELD:
            yield ray
            return
        if ray.is_initialized():
            if self.address is None:
                raise InputError("workers", expected="a process that runs no Ray", got="one", instead="address='auto'")
            yield ray
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        folder = _session_folder() if self.address is None else None
        try:
            if folder is None:
                ray.init(address=self.address, **quiet)
            else:
                ray.init(
                    address="local", num_cpus=self.workers, include_dashboard=False, object_store_memory=_STORE,
                    _node_ip_address="127.0.0.1", _temp_dir=folder, **quiet,
                )  # fmt: skip
                _check_loopback(ray)
            yield ray
        except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as e:
            if ray.is_initialized():
                raise
            raise IsthmusError(_unreached(e, isinstance(e, ray.exceptions.AuthenticationError), self.address)) from e
        finally:
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


class _Queue:
    """The items that are `ready`; item i becomes so when all of ``after[i]`` are finished."""

    def __init__(self, after: Sequence[Sequence[int]]) -> None:
        self.unmet = [len(set(before)) for before in after]
        self.followers: dict[int, list[int]] = {}
        for i, before in enumerate(after):
            for j in set(before):
                self.followers.setdefault(j, []).append(i)
        self.ready = deque(i for i, n in enumerate(self.unmet) if n == 0)

    def finish(self, i: int) -> None:
        for j in self.followers.pop(i, ()):
            self.unmet[j] -= 1
            if self.unmet[j] == 0:
                self.ready.append(j)


def _unreached(e: Exception, token: bool, address: str | None) -> str:
    """Why there is no session, in one line."""
    if token:
        return "Ray's token is not there or is another one; give that of the cluster in RAY_AUTH_TOKEN"
    where = "here" if address is None else f"at {address}"
    return f"Ray could not be reached {where}: {str(e).strip().splitlines()[0]}"


def _session_folder() -> str:
    """A folder for Ray's sockets and logs; those of drivers that were killed are removed."""
    for old in Path(tempfile.gettempdir()).glob("isthmus-ray-*"):
        pid = old.name.split("-")[2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"isthmus-ray-{os.getpid()}-")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


_LAST: dict[str, Any] = {}
_HELD: list[Ray] = []
"""The engines whose session is open."""


def _call(common: list[Any], item: Any) -> Any:
    """In the worker: fetch what all items share, once, and work as the driver would."""
    import ray

    name = common[0].hex()
    if name not in _LAST:
        _LAST.clear()
        _LAST[name] = ray.get(common[0])
    function, shared, folder = _LAST[name]
    if os.getcwd() != folder:
        with suppress(OSError):  # a relative path means what it meant to the driver
            os.chdir(folder)
    try:
        with one_thread():
            return function(shared, item)
    except Exception as e:
        return _Raised(_portable(e), traceback.format_exc())


@dataclass(frozen=True)
class _Raised:
    """What the function raised in the worker."""

    error: Exception
    trace: str


def _portable(error: Exception) -> Exception:
    """The error itself if it survives the way to the driver, else one with its message."""
    try:
        return pickle.loads(pickle.dumps(error))  # noqa: S301, our own bytes of a moment ago
    except Exception:
        return IsthmusError(f"{type(error).__name__}: {error}")


def _value(ray: Any, reference: Any) -> Any:
    try:
        value = ray.get(reference)
        if isinstance(value, _Raised):
            if not isinstance(value.error, IsthmusError):
                value.error.add_note(value.trace)
            raise value.error
        return value
    except ray.exceptions.RayError as e:
        return Failed(f"its worker was lost and so were its retries ({str(e).strip().splitlines()[0]})", str(e))


def _import(*, local: bool) -> Any:
    """Import Ray with its safe settings; it reads them once."""
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise InputError(
            "RAY_AUTH_MODE",
            expected="'token' before ray is imported",
            got=repr(os.environ.get("RAY_AUTH_MODE")),
            instead="os.environ['RAY_AUTH_MODE'] = 'token' first",
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if local:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # by default Ray takes the loopback address only on machines that cannot be part of a cluster
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        return importlib.import_module("ray")
    except ImportError as e:
        raise MissingExtraError("ray", "ray") from e


def _check_loopback(ray: Any) -> None:
    """Refuse to work where others could reach the processes: Ray was imported with other settings, or has changed."""
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback:
        ray.shutdown()
        raise IsthmusError(
            f"Ray listens on {address}, not on the loopback interface; import ray after isthmus.sweep, "
            "or start a cluster yourself and give its address"
        )
