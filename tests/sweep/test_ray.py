"""Ray: the same bytes, kills of workers and of the driver, and what listens where."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import isthmus as im
from isthmus.experiments import Network, Pair, Problem
from isthmus.sweep import Local, Ray, Store, certify_in_parallel, profile_in_parallel, run_cells
from isthmus.sweep.base import Failed
from isthmus.training.fit import Recipe
from tests.problems import odd_widths, two_layers
from tests.sweep.cells import LONG, Square, Total, results, running, squares, temporaries

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs isthmus[ray]")
ROOT = Path(__file__).parents[2]


def _listening() -> set[tuple[str, int]]:
    """The addresses and ports that any process of this machine listens on."""
    found = set()
    for name, size in (("tcp", 4), ("tcp6", 16)) if Path("/proc/net/tcp").exists() else ():
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                address, port = local.split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, 2 * size, 8)]
                family = socket.AF_INET if size == 4 else socket.AF_INET6
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found


@pytest.fixture(scope="module")
def session():
    """One session of Ray for all tests of this file, and what listens since it began."""
    before = _listening()
    with Ray(2)._session() as ray:
        yield ray, _listening() - before
    assert not ray.is_initialized()


def _kill_workers(log: Path, kills: int, done: list[int], stop: threading.Event) -> None:
    """Kill processes that have started a cell and not ended it, until there were `kills`."""
    rng = random.Random(3)
    while len(done) < kills and not stop.is_set():
        time.sleep(rng.uniform(0.05, 0.2))
        alive = [pid for pid in running(log) if pid not in done]
        if alive:
            pid = rng.choice(alive)
            os.kill(pid, signal.SIGKILL)
            done.append(pid)


def _pair() -> Pair:
    """Two networks to train, and a path between them to construct, measure and prove."""
    problem = Problem("mlp:6-5x1-2", "gaussians:N=60,d=6,seed=1")
    a, b = (Network(problem, seed, Recipe(lr=0.02, steps=40, batch=20)) for seed in (0, 1))
    return Pair("toy", a, b, im.Dropout(masks=2), num_points=5, gap=0.1)


def test_workers_are_killed_and_all_results_are_there_once(session, tmp_path):
    count, kills = (200, 20) if LONG else (24, 3)
    cells = squares(count, 0.15, tmp_path / "log")
    total = Total(tuple(cells[:10]))
    killed: list[int] = []
    stop = threading.Event()
    killer = threading.Thread(target=_kill_workers, args=(tmp_path / "log", kills, killed, stop))
    killer.start()
    try:
        report = run_cells([total, *cells, _pair()], Store(tmp_path / "ray"), Ray(address="auto", retries=10))
    finally:
        stop.set()
        killer.join()
    assert report.ok, report.failed
    assert len(killed) == kills
    assert report.computed == count + 4
    ends = [len(list((tmp_path / "log").glob(f"{n}.end.*"))) for n in range(count)]
    assert min(ends) == 1
    assert sum(ends) - count <= kills
    assert not temporaries(tmp_path / "ray")
    record = Store(tmp_path / "ray").load(total).record
    assert (record["threads"], record["engine"]) == (1, "ray")
    assert record["pid"] != os.getpid()
    again = run_cells([total, *cells, _pair()], Store(tmp_path / "ray"), Ray(address="auto"))
    assert again.computed == 0
    local = [Square(n, 0.15, str(tmp_path / "log")) for n in range(10)]
    run_cells([total, *local, _pair()], Store(tmp_path / "local"), Local())
    assert len(results(tmp_path / "local")) > 20
    assert results(tmp_path / "local").items() <= results(tmp_path / "ray").items()
    starts = len(list((tmp_path / "log").glob("*.start.*"))) - 10
    print(f"{count} cells, {len(killed)} workers killed, {starts} starts, {sum(ends)} ends")


def test_the_driver_is_killed_and_a_rerun_does_the_rest(session, tmp_path):
    count, kills = (200, 3) if LONG else (18, 1)
    (tmp_path / "log").mkdir()
    arguments = [str(tmp_path / "runs"), str(count), "0.1", str(tmp_path / "log")]
    command = [sys.executable, "-m", "tests.sweep.cells", *arguments]
    for k in range(kills):
        driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 100
        want = (k + 1) * count // (kills + 2)
        while time.monotonic() < end and len(list((tmp_path / "runs").glob("*/*/result.json"))) < want:
            time.sleep(0.02)
            assert driver.poll() is None
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    cells = squares(count, 0.1, tmp_path / "log")
    store = Store(tmp_path / "runs")
    last = run_cells(cells, store, Ray(address="auto"))
    assert last.ok, last.failed
    assert last.found > 0
    assert last.found + last.computed == count
    assert [store.load(c).result["square"] for c in cells] == [n**2 for n in range(count)]
    ends = sum(len(list((tmp_path / "log").glob(f"{n}.end.*"))) for n in range(count))
    assert ends - count <= 2 * kills
    assert not temporaries(tmp_path / "runs")
    print(f"{count} cells, {kills} kills of the driver, {ends} executions to the end, {last.computed} at last")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
def test_a_session_is_safe_and_refuses_what_it_cannot_do(session, tmp_path):
    ray, new = session
    assert len(new) > 2
    assert {a for a, _ in new} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) >= 32
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert ray._private.worker.global_worker.node.webui_url in (None, "")
    with pytest.raises(im.InputError, match="runs no Ray"):
        next(Ray(2).map(_answer, 1, [1]))
    # a session that runs is used when an address is given, and stays
    shared = Ray(address="auto")
    assert sorted(shared.map(_answer, tmp_path.name, [1, 2, 3])) == [(i, (1, tmp_path.name)) for i in range(3)]
    with pytest.raises(im.IsthmusError, match="no threes"):
        list(shared.map(_no_threes, None, [1, 3]))
    lost = dict(Ray(address="auto", retries=0).map(_die, None, [0, 1]))
    assert lost[0] == 0
    assert isinstance(lost[1], Failed)
    assert "worker was lost" in lost[1].message
    for problem in (two_layers(), odd_widths()):
        _the_same_in_parallel(problem, shared)
    assert ray.is_initialized()


def test_without_the_token_of_a_cluster_there_is_one_line(tmp_path):
    """In a process of its own: Ray reads the token once."""
    code = "from isthmus.sweep import Ray\nfor _ in Ray(address='127.0.0.1:1').map(print, 1, [1]): pass"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "IsthmusError: Ray's token is not there" in found.stderr


def _the_same_in_parallel(problem, engine):
    path = im.Path.through([problem.a, problem.b])
    path = path + path.reversed()
    mine = profile_in_parallel(problem.objective, path, 5, chunk=7)
    theirs = profile_in_parallel(problem.objective, path, 5, chunk=7, engine=engine)
    assert torch.equal(mine.loss, theirs.loss)
    assert torch.equal(mine.error, theirs.error)
    proved = certify_in_parallel(problem.objective, path, 0.2, chunk=12, budget=30)
    assert proved == certify_in_parallel(problem.objective, path, 0.2, chunk=12, budget=30, engine=engine)
    chords = certify_in_parallel(problem.objective, path, 0.05, model="chord", budget=2)
    assert chords == certify_in_parallel(problem.objective, path, 0.05, model="chord", budget=2, engine=engine)


def _answer(shared, item):
    return torch.get_num_threads(), shared


def _no_threes(shared, item):
    if item == 3:
        raise im.InputError("item", expected="no threes", got=item)
    return item


def _die(shared, item):
    if item:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.parametrize("bad", [{"workers": 0}, {"retries": -1}, {"cpus": -1}, {"resources": {"big": float("nan")}}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(im.InputError):
        Ray(**bad)


@pytest.mark.parametrize(("wanted", "room"), [({}, 16), ({"gpus": 0.5}, 4), ({"cpus": 100}, 1), ({"cpus": 0}, 1)])
def test_as_many_at_once_as_the_cluster_has_room_for(monkeypatch, wanted, room):
    class Cluster:
        def cluster_resources(self):
            return {"CPU": 16.0, "GPU": 2.0}

    monkeypatch.setattr(Ray, "_session", lambda self: nullcontext(Cluster()))
    assert Ray(1, "auto", **wanted).at_once == room
    assert Ray(3).at_once == 3
