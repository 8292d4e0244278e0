"""Running cells in this process and in shards: what is missing, once, whatever is killed."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.storage.files import _host
from isthmus.sweep import FolderMemory, Local, Shard, Store, SweepReport, run_cells, with_needs
from isthmus.training.fit import Recipe, fit
from isthmus.training.memory import forget
from tests.sweep.cells import LONG, Square, Total, Training, ended, forked, results, shard, squares, temporaries


def test_only_what_is_missing_is_computed(tmp_path):
    store, cells = Store(tmp_path), [Square(n) for n in range(5)]
    total = Total(tuple(cells[:3]))
    first = run_cells([total], store, Local())
    assert (first.total, first.found, first.computed) == (4, 0, 4)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.json")}
    second = run_cells([*cells, total], store, Local())
    assert (second.total, second.found, second.computed) == (6, 4, 2)
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())
    assert store.load(total).result == {"sum": 5}


def test_what_a_process_left_that_was_killed_after_its_result_goes_away(tmp_path):
    store, cell = Store(tmp_path), Square(3)
    run_cells([cell], store, Local())
    dead = forked(lambda: None)
    assert ended(dead) == 0
    made = [store.folder(cell) / f".result.json.{pid}.{_host()}01234567.tmp" for pid in (dead, os.getpid())]
    for scratch in made:
        scratch.mkdir()
    run_cells([cell], store, Local())
    assert [scratch.exists() for scratch in made] == [False, True]


def test_needs_come_first_and_once():
    cells = [Square(n) for n in range(3)]
    plan = with_needs([Total(tuple(cells)), cells[0], Total(tuple(cells[:2]))])
    assert plan == [*cells, Total(tuple(cells)), Total(tuple(cells[:2]))]


def test_cells_that_are_equal_in_python_alone_are_two(tmp_path):
    """1, 1.0 and True are equal, and the JSON that keys are made of is not."""
    cells: list[Any] = [Square(1), Square(1, 0), Square(True), Square(1)]
    report = run_cells([*cells, Total((cells[1],))], Store(tmp_path), Local())
    assert report.ok
    assert report.total == report.computed == 4
    assert len({Store(tmp_path).load(cell).key for cell in cells}) == 3


def test_a_result_that_names_no_values_is_refused_before_it_is_kept(tmp_path):
    cell = Square(2)
    with pytest.raises(im.InputError, match="named values, got list"):
        Store(tmp_path).write(cell, [4], {})  # type: ignore[arg-type]
    assert Store(tmp_path).find(cell) is None


def test_what_was_counted_before_an_interrupt_can_be_read(tmp_path):
    def stops(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    report = SweepReport()
    with pytest.raises(KeyboardInterrupt):
        run_cells([Square(-1), *map(Square, range(4))], Store(tmp_path), Local(), progress=stops, report=report)
    assert (report.total, report.computed, list(report.failed)) == (5, 2, ["square of -1"])


def test_a_cell_that_fails_stops_only_those_that_need_it(tmp_path):
    good, bad = Square(2), Square(-1)
    report = run_cells([bad, Total((bad,)), good, Total((good,))], Store(tmp_path), Local())
    assert not report.ok
    assert report.computed == 2
    assert set(report.failed) == {bad.label, Total((bad,)).label}
    assert "expected a number >= 0, got -1" in report.failed[bad.label].message
    assert report.failed["sum of 1"].message == "it needs a cell that has no result: square of -1"
    assert not Store(tmp_path).folder(bad).exists()


def test_one_thread_is_used_and_recorded_and_the_callers_number_comes_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_cells([Square(1)], Store(tmp_path), Local())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    record = Store(tmp_path).load(Square(1)).record
    assert record["threads"] == 1
    assert record["engine"] == "local"
    assert {"seconds", "processor_seconds", "host", "torch", "isthmus"} <= set(record)


def test_progress_counts_cells(tmp_path):
    calls = []
    run_cells([Square(n) for n in range(3)], Store(tmp_path), Local(), progress=lambda *c: calls.append(c))
    assert calls[0] == ("cells", 0, 3)
    assert calls[-1] == ("cells", 3, 3)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "-1/4", "1/0", "1/4/2"])
def test_bad_shards_are_refused(text):
    with pytest.raises(im.InputError, match="shard"):
        Shard.parse(text)


def test_shards_share_the_cells_out():
    cells = [Square(n) for n in range(10)]
    parts = [Shard(i, 3).of(cells) for i in (1, 2, 3)]
    assert len({c for p in parts for c in p}) == sum(map(len, parts)) == 10
    assert {c for p in parts for c in p} == set(cells)


def test_shards_wait_for_a_cell_that_both_need(tmp_path):
    shared = squares(1, 0.4, tmp_path / "log")[0]
    totals = [Total((shared, Square(n))) for n in (5, 6)]

    def one(i):
        report = run_cells(totals, Store(tmp_path / "runs"), Local(), shard=Shard(i, 2))
        assert report.ok, report.failed

    children = [forked(lambda i=i: one(i)) for i in (1, 2)]
    assert [ended(c) for c in children] == [0, 0]
    assert len(list((tmp_path / "log").glob("0.end.*"))) == 1
    assert [Store(tmp_path / "runs").load(t).result["sum"] for t in totals] == [25, 36]


def test_four_shards_on_one_folder_with_kills(tmp_path):
    count, kills = (200, 20) if LONG else (60, 6)
    root, cells = tmp_path / "runs", squares(count, 0.1, tmp_path / "log")
    children = {i: forked(lambda i=i: shard(root, cells, i, 4)) for i in range(1, 5)}
    rng = random.Random(1)
    killed = 0
    while killed < kills:
        time.sleep(rng.uniform(0.02, 0.1))
        assert len(list(root.glob("*/*/result.json"))) < count, "everything was done before all kills"
        i = rng.choice(sorted(children))
        os.kill(children[i], signal.SIGKILL)
        killed += ended(children[i]) == -signal.SIGKILL
        children[i] = forked(lambda i=i: shard(root, cells, i, 4))
    assert [ended(c) for c in children.values()] == [0] * 4
    store = Store(root)
    assert [store.load(c).result["square"] for c in cells] == [n**2 for n in range(count)]
    ends = [len(list((tmp_path / "log").glob(f"{n}.end.*"))) for n in range(count)]
    assert min(ends) == 1
    assert sum(ends) - count <= killed  # killed between the end of the work and the rename
    assert not temporaries(root)
    run_cells(cells[:20], Store(tmp_path / "other"), Local())
    other = results(tmp_path / "other")
    assert other.items() <= results(root).items()
    print(f"{count} cells, {killed} kills, {sum(ends)} executions to the end")


def _interrupted(cells: list[Square], root: Path) -> bool:
    """Whether an interrupt after three cells came before all were done; it ends the process with its code."""
    child = forked(lambda: run_cells(cells, Store(root), Local()))
    while len(list(root.glob("*/*/result.json"))) < 3:
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    code = ended(child)
    assert code == (130 if len(list(root.glob("*/*/result.json"))) < len(cells) else 0)
    return code == 130


def test_an_interrupt_leaves_a_clean_folder_and_a_rerun_goes_on(tmp_path):
    cells = squares(30, 0.05, tmp_path / "log")
    roots = [tmp_path / f"runs-{attempt}" for attempt in range(10)]
    # on a busy machine all cells may be done before the interrupt comes
    root = next(root for root in roots if _interrupted(cells, root))
    folders = [f for f in (root / "squares").iterdir() if f.name != ".locks"]
    assert all((f / "result.json").exists() for f in folders)
    assert 3 <= len(folders) < 30
    assert not temporaries(root)
    assert not list((root / "squares/.locks").iterdir())
    report = run_cells(cells, Store(root), Local())
    assert report.ok
    assert report.found == len(folders)


# -- resuming inside a cell


class _StopError(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_a_fit_goes_on_to_the_same_bits_from_any_step(tmp_path, optimizer, schedule):
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    recipe = Recipe(optimizer, lr=0.05, steps=60, batch=12, check=4, schedule=schedule, weight_decay=1e-3)
    start = {"w": torch.zeros(1, dtype=torch.float64), "n": torch.tensor(3)}

    def run(stop, memory):
        seen = [0]

        def batch_loss(p, index):
            seen[0] += 1
            if seen[0] == stop:
                raise _StopError
            return (x[index] * p["w"] - 3 * x[index] + 1).square().mean()

        generator = torch.Generator().manual_seed(7)
        full = lambda p: float((x * p["w"] - 3 * x + 1).square().mean())
        return fit(batch_loss, full, start, 40, recipe, generator=generator, memory=memory), seen[0]

    whole, _ = run(0, forget)
    for stop in (1, 2, 5, 17, 40, 60):
        path = tmp_path / str(stop)
        with pytest.raises(_StopError):
            run(stop, FolderMemory(path, "me", steps=3))
        resumed, steps = run(0, FolderMemory(path, "me", steps=3))
        assert torch.equal(resumed.params["w"], whole.params["w"])
        assert (resumed.loss, resumed.steps, resumed.ended) == (whole.loss, whole.steps, whole.ended)
        assert steps == 60 - (stop - 1) // 3 * 3


def test_lbfgs_keeps_its_result_only(tmp_path):
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    loss = lambda p, index: (x[index] * p["w"] - 3).square().mean() + p["w"].abs().sum()
    full = lambda p: float(loss(p, torch.arange(40)))
    keep = FolderMemory(tmp_path, "me", steps=1)
    start = {"w": torch.ones(1, dtype=torch.float64)}

    def run(batch_loss):
        return fit(batch_loss, full, start, 40, Recipe("lbfgs", steps=5), generator=torch.Generator(), memory=keep)

    def dies(p, index):
        raise _StopError

    with pytest.raises(_StopError):
        run(dies)
    assert not keep.begun()
    done = run(loss)
    again = run(dies)  # nothing is computed
    assert torch.equal(done.params["w"], again.params["w"])
    assert (done.loss, done.steps, done.ended) == (again.loss, again.steps, again.ended)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_long_cell_killed_at_random_ends_with_the_same_bytes(tmp_path, optimizer):
    kills = 20 if LONG else 3
    cell = Training(optimizer, pause=0.005)
    run_cells([cell], Store(tmp_path / "whole"), Local())
    root, rng, killed = tmp_path / "killed", random.Random(2), 0
    checkpoint = Store(root).folder(cell) / "work.state.safetensors"
    while killed < kills:
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        child = forked(lambda: run_cells([cell], Store(root), Local()))
        end = time.monotonic() + 60
        while time.monotonic() < end and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns != before):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL, "the cell was finished before all kills"
        killed += 1
    assert run_cells([cell], Store(root), Local()).computed == 1
    assert results(root) == results(tmp_path / "whole")
    assert not temporaries(root)
    assert not checkpoint.exists()
    # the last process did not do all of the work, and what the others took is not known
    assert Store(root).load(cell).record["seconds"] is None
    assert Store(tmp_path / "whole").load(cell).record["seconds"] > 0
    result = json.loads((Store(root).folder(cell) / "result.json").read_text())["result"]
    assert result["steps"] == 400
    print(f"{optimizer}: {killed} kills, {result['params']}")
