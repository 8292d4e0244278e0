"""Two nodes of Ray on this machine: workers, a node, the driver and the head are killed; every result is there once.

    python -m tests.long.nodes [JOBS]       # 200 jobs of a tenth of a second, 40 kills

A head and a second node are started with a token. While a driver works, workers of both are killed (SIGKILL), the
second node is killed and joins again, and the driver is killed and begun anew. At last the head is killed, upon which
Ray ends the driver; with another head the same call does the rest. Without the token nobody is let in.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from isthmus.sweep import Ray, Store, run_cells
from tests.sweep.cells import running, squares, temporaries

KILLS = {"worker": 30, "node": 5, "driver": 5}
SECONDS = 0.1


def drive(address: str, root: str, jobs: str, log: str) -> int:
    """A driver: what is missing of so many jobs, on the cluster there."""
    from isthmus.errors import IsthmusError

    try:
        report = run_cells(squares(int(jobs), SECONDS, Path(log)), Store(Path(root)), Ray(address=address, retries=20))
    except IsthmusError as e:
        print(f"isthmus: {e}", file=sys.stderr)
        return 2
    return 0 if report.ok else 1


class Session:
    """A cluster, and a driver on it."""

    def __init__(self, folder: Path, jobs: int) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.jobs = folder, jobs
        usual = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=usual)
        self.node: Any = None
        self.join()
        self.driver = self.begin()

    def join(self) -> None:
        if self.node is None:
            self.node = self.cluster.add_node(num_cpus=1, object_store_memory=100_000_000)

    def begin(self, token: bool = True) -> subprocess.Popen[str]:
        """A driver in a process of its own."""
        words = ["drive", self.cluster.address, str(self.folder / "runs"), str(self.jobs), str(self.folder / "log")]
        environment = dict(os.environ) if token else {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.long.nodes", *words],
            stderr=subprocess.PIPE, text=True, env=environment | {"HOME": str(self.folder)},
        )  # fmt: skip

    def kill(self, what: str, r: random.Random) -> bool:
        """Whether there was one to kill."""
        if what == "node":
            if self.node is None:
                return False
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = None
        elif what == "driver":
            self.driver.kill()
            self.driver.wait()
            self.driver = self.begin()
        else:
            alive = running(self.folder / "log")
            if not alive:
                return False
            with contextlib.suppress(ProcessLookupError):
                os.kill(r.choice(alive), signal.SIGKILL)
        return True

    def results(self) -> int:
        return len(list((self.folder / "runs").glob("*/*/result.json")))


def main(jobs: int = 200) -> None:
    r = random.Random(0)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        (folder / "log").mkdir()
        session = Session(folder, jobs)
        done = _attacked(session, r)
        stranger = session.begin(token=False)
        print(f"without the token: exit code {stranger.wait(120)}, {_last_line(stranger)!r}")
        session.cluster.remove_node(session.cluster.head_node, allow_graceful=False)
        begin = time.monotonic()
        code = session.driver.wait(300)
        took, at_death = time.monotonic() - begin, session.results()
        print(f"head killed: exit code {code} after {took:.0f} s, {_last_line(session.driver)!r}, {at_death} results")
        with contextlib.suppress(Exception):
            session.cluster.shutdown()
        again = Session(folder, jobs)
        code = again.driver.wait(300)
        ends = len(list((folder / "log").glob("*.end.*")))
        print(
            f"{jobs} jobs, killed {done}; with another head exit code {code}, {again.results()} results, {ends} "
            f"executions to the end, {len(temporaries(folder / 'runs'))} files left behind"
        )
        again.cluster.shutdown()


def _attacked(session: Session, r: random.Random) -> dict[str, int]:
    """Kills in random order until all were done or three quarters of the jobs are."""
    left = [what for what, n in KILLS.items() for _ in range(n)]
    r.shuffle(left)
    done = dict.fromkeys(KILLS, 0)
    while left and session.results() < 3 * session.jobs // 4:
        time.sleep(r.uniform(0.05, 0.4))
        if session.driver.poll() is not None:
            raise SystemExit(f"the driver ended: {session.driver.returncode}, {_last_line(session.driver)}")
        if session.kill(left[-1], r):
            done[left.pop()] += 1
        else:
            session.join()
            r.shuffle(left)
    session.join()
    return done


def _last_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return next(iter(process.stderr.read().strip().splitlines()[-1:]), "")


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        sys.exit(drive(*sys.argv[2:]))
    main(*map(int, sys.argv[1:]))
