"""Made-up runs, in the files that a real one leaves."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import numpy as np
import torch

from isthmus.connectors.base import Connection, Outcome
from isthmus.paths import Curve, Path
from isthmus.storage import write_sealed
from isthmus.storage.paths import save

PARAGRAPHS = {
    "Linear": ("baseline", 1),
    "Dropout": ("Kuditipudi et al. 2019, Theorem 1", 20),
    "Subnetwork": ("Nguyen, Brechet and Mondelli 2021, Theorem 4.1", 19),
    "Bezier": ("Garipov et al. 2018", 1),
    "PolyChain": ("Garipov et al. 2018", 2),
    "AutoNEB": ("Draxler et al. 2018", 9),
    "NoiseDropout": ("Kuditipudi et al. 2019, Theorem 2", 10),
    "Narrow": ("Kuditipudi et al. 2019, Theorem 3", 13),
    "StringSampling": ("Freeman and Bruna 2017, Algorithm 1", 8),
    "MeanField": ("Shevchenko and Mondelli 2020, Theorem 1", 7),
    "Sublevel": ("Nguyen 2019, Theorem 5.1", 7),
    "TwoLayerReLU": ("Freeman and Bruna 2017, Theorem 2.4", 5),
}
HEIGHTS = (1.45, 1.5166, 0.0026, 0.012, 0.05, 0.03, 0.224, 0.0246, 0.09, 0.4, 0.0004, 0.6)
ENDS = (1.5e-4, 1.9e-4)
PIECES = 20


def point(seed: int, size: int = 30) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"0.weight": torch.randn(size, 4, generator=generator), "0.bias": torch.randn(size, generator=generator)}


def make_path(method: str, segments: int, seed: int) -> Path:
    a, b = point(1), point(2)
    if method == "Bezier":
        return Path((Curve((a, point(seed), b)),))
    inner = [
        {k: (1 - i / segments) * a[k] + i / segments * b[k] + 0.8 * point(seed + i)[k] for k in a}
        for i in range(1, segments)
    ]
    return Path.through([a, *inner, b])


def curve(height: float, t: np.ndarray, scale: float = 1.0) -> np.ndarray:
    base = (1 - t) * ENDS[0] + t * ENDS[1]
    return scale * (base + max(height - max(ENDS), 0.0) * np.sin(np.pi * t) ** 2)


def barriers(t: np.ndarray, q: np.ndarray) -> dict[str, float]:
    linear = q - ((1 - t) * q[0] + t * q[-1])
    return {
        "max": q.max(),
        "excess": q.max() - max(q[0], q[-1]),
        "linear": linear.max(),
        "mean": q.max() - q[[0, -1]].mean(),
    }


def make_run(folder: File, method: str = "Dropout", *, index: int = 1, test: bool = True, **changes: Any) -> File:
    """One folder with all four files; `changes` replace entries of result.json."""
    folder.mkdir(parents=True, exist_ok=True)
    reference, segments = PARAGRAPHS.get(method, ("nobody", 3))
    height = HEIGHTS[index % len(HEIGHTS)]
    t = np.linspace(0, 1, segments * PIECES + 1)
    segment = np.minimum((t * segments).astype(int), segments - 1)
    loss, error = curve(height, t), np.clip(curve(height, t) / 3, 0, 0.9)
    test_loss, test_error = curve(height, t, 1.3) + 0.08, np.clip(error + 0.03, 0, 1)
    labels = [f"Lemma {i % 3 + 1} ({'abm'[i % 3]})" for i in range(segments)]
    kinds = ("measured",) if method in ("Linear", "Bezier", "PolyChain") else ("convex", "unchanged")
    proved = "measured" not in kinds
    result = {
        **{"format": 1, "method": {"name": method, "keep": 0.5}, "reference": reference},
        "outcome": {"name": "CONSTRUCTED", "ok": True, "message": "constructed: as the method describes"},
        **{"segments": segments, "length": 12.5 + index, "normalized_length": 1.0 + 0.3 * index},
        **{"loss_a": ENDS[0], "loss_b": ENDS[1], "max_loss": loss.max(), "excess": loss.max() - max(ENDS)},
        **{"bound": loss.max() * 1.01 if proved else None, "proved": proved},
        **{"test_error_max": test_error.max() if test else None, "test_loss_max": test_loss.max() if test else None},
        "population": {"loss": [1.25, 2.5], "error": [0.0125, 0.046793], "text": "largest loss in [1, 2] (asymptotic)"}
        if test
        else None,
        "seconds": {"connect": 12.34 * index, "profile": 1.2, "certify": 0.4},
        **{"seed": 0, "model": "mlp:64-60x4-10", "data": "digits", "dtype": "float64"},
        "command": f"isthmus connect a.safetensors b.safetensors --model mlp:64-60x4-10 --method {method}",
        **{"version": "0.1.0", "torch": "2.13.0", "labels": labels},
    } | changes
    profile = {
        **{"format": 1, "num_points": PIECES + 1, "t": t.tolist(), "segment": segment.tolist()},
        **{"loss": loss.tolist(), "error": error.tolist(), "bn": "none", "tol": None, "within": None},
        "barriers": {"loss": barriers(t, loss), "error": barriers(t, error)},
        "test": {
            **{"loss": test_loss.tolist(), "error": test_error.tolist()},
            "barriers": {"loss": barriers(t, test_loss), "error": barriers(t, test_error)},
        }
        if test
        else None,
    }
    certificate = {
        **{"format": 1, "bound": loss.max() * 1.01, "excess": loss.max() * 1.01 - max(ENDS), "proved": proved},
        **{"dtype": "float64", "slack": 1e-12, "ends": list(ENDS), "goal": 0.02, "evaluations": 8, "budget": 40},
        **{"witness": {"t": 0.5, "loss": loss.max()}, "spent": False, "expected": None},
        "segments": [
            {
                "index": i,
                "claim": kinds[i % len(kinds)],
                "bound": loss.max() * 1.01,
                "why": "layer 3 only",
                "label": label,
            }
            for i, label in enumerate(labels)
        ],
    }
    for name, document in (("result", result), ("profile", profile), ("certificate", certificate)):
        write_sealed(folder / f"{name}.json", document)
    path = make_path(method, segments, 100 * (index + 1))
    save(Connection(path, path.end, Outcome.CONSTRUCTED, {}), folder / "path.safetensors")
    return folder


def make_runs(folder: File, count: int) -> File:
    """A folder with `count` runs of different methods, the straight line first."""
    for i, method in enumerate(list(PARAGRAPHS)[:count]):
        make_run(folder / f"{i:02d}-{method.lower()}", method, index=i)
    return folder
