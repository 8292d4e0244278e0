"""The main job on built-in data: two digit networks from different seeds, three paths, proofs, a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from isthmus import pipeline as runs
from isthmus.connectors import Dropout, Linear, Subnetwork
from isthmus.data import load
from isthmus.models import by_name, seeded
from isthmus.objective import Objective
from isthmus.report import write_report
from isthmus.storage import make_folder, save_params
from isthmus.training.fit import Recipe
from isthmus.training.progress import Progress

MODEL = "mlp:64-60x4-10"
DATA = "digits"


def run_demo(out: Path, *, num_points: int, seed: int, progress: Progress) -> tuple[list[dict[str, Any]], Path]:
    """Train, connect, measure, prove, report; returns the rows of the table and the page."""
    data = load(DATA).flat()
    x, y = data.x_train.double(), data.y_train
    make_folder(out)
    recipe = Recipe(lr=2e-3, batch=128, steps=4000)
    ends = []
    for name, s in (("a", 2 * seed), ("b", 2 * seed + 1)):
        module = seeded(lambda: by_name(MODEL), s).double()
        fitted = runs.train(module, (x, y), recipe, seed=s, target=5e-4, progress=progress)
        save_params(fitted.params, out / f"{name}.safetensors", {"model": MODEL, "data": DATA, "seed": str(s)})
        ends.append(fitted.params)
    objective = Objective(by_name(MODEL), "cross_entropy", (x, y), dtype=torch.float64)
    if data.x_test is None or data.y_test is None:
        raise RuntimeError("the digits have a test part")
    test = objective.on((data.x_test, data.y_test))
    results = []
    for method in (Linear(), Dropout(), Subnetwork()):
        name = type(method).__name__
        folder = out / name.lower()
        command = (
            f"isthmus connect {out}/a.safetensors {out}/b.safetensors --method {name} --out {folder} --seed {seed}"
        )
        about = {"model": MODEL, "data": DATA, "command": f"{command} --num-points {num_points}"}
        done = runs.run(
            objective, ends[0], ends[1], method, folder,
            test=test, num_points=num_points, budget=100, seed=seed, about=about, progress=progress,
        )  # fmt: skip
        results.append(done.result)
    return results, write_report(out)
