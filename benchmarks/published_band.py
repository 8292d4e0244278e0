"""The published nudged elastic band beside ours: the code of Draxler et al. 2018 (PyTorch-AutoNEB), on a pair of ours.

``curves.py --autoneb FOLDER`` runs it: FOLDER holds a copy of that repository, of which nothing is changed. What left
Python is put back for it, and its loader, which starts four processes, is one that cuts tensors.
"""

from __future__ import annotations

import collections
import collections.abc
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from common import clock
from torch import Tensor, nn

import isthmus as im

STEPS, BATCH, CYCLES = 150, 512, (("equal", 3), ("highest", 2), ("highest", 2))


class Batches:
    """Batches of tensors, shuffled ones without the last small one; read once from front to back they are an epoch."""

    def __init__(self, x: Tensor, y: Tensor, shuffle: bool) -> None:
        self.x, self.y, self.shuffle = x, y, shuffle

    def __iter__(self) -> Iterator[list[Tensor]]:
        n = len(self.y)
        order = torch.randperm(n)[: n // BATCH * BATCH] if self.shuffle else torch.arange(n)
        for index in order.split(BATCH):
            yield [self.x[index], self.y[index]]


def published_band(
    folder: str, objective: im.Objective, module: nn.Module, ends: Sequence[im.Params]
) -> Iterator[tuple[int, float, float]]:
    """After each cycle the gradients so far, the largest loss at 10 points of each gap, and the seconds so far."""
    collections.Iterable = collections.abc.Iterable  # type: ignore[attr-defined]
    sys.path.insert(0, folder)
    code = import_module("torch_autoneb")
    x, y = objective.data
    assert isinstance(x, Tensor)
    whole = torch.utils.data.TensorDataset(x, y)
    data = code.models.DataModel(code.models.CompareModel(deepcopy(module), nn.CrossEntropyLoss()), {"train": whole})
    model = code.models.ModelWrapper(data)
    code.models.ensure_data_loader = lambda _, batch_size, shuffle=False, **others: Batches(x, y, shuffle)
    names = [k for k, _ in module.named_parameters()]
    coordinates = [torch.cat([end[k].flatten() for k in names]) for end in ends]
    found: dict[str, Any] = {"path_coords": torch.stack(coordinates), "target_distances": torch.ones(1)}
    optimiser = {
        "nsteps": STEPS,
        "algorithm": {"name": "SGD", "lr": 0.02, "momentum": 0.9},
        "eval": {"batch_size": BATCH},
    }
    gradients, seconds = 0, 0.0
    for insert, count in CYCLES:
        insertion = {"name": insert, "count": count} | ({"key": "dense_train_loss"} if insert == "highest" else {})
        plan = {"insert": insertion, "spring_constant": "inf", "subsample_pivot_count": 9, "optim": optimiser}
        begin = clock()
        found = code.neb(found, model, code.config.NEBConfig.from_dict(plan))
        seconds += clock() - begin
        points = found["path_coords"]
        gradients += STEPS * (len(points) - 2)
        yield gradients, _highest(module, names, points, x, y), seconds


def _highest(module: nn.Module, names: Sequence[str], points: Tensor, x: Tensor, y: Tensor) -> float:
    shapes = [v.shape for _, v in module.named_parameters()]
    top = 0.0
    with torch.no_grad():
        for p, q in pairwise(points):
            for i in range(11):
                parts = torch.lerp(p, q, i / 10).split([s.numel() for s in shapes])
                params = {k: v.view(s) for k, v, s in zip(names, parts, shapes, strict=True)}
                top = max(top, float(F.cross_entropy(torch.func.functional_call(module, params, x), y)))
    return top
