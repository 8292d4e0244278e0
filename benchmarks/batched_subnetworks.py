"""How much faster are 20 draws of a subnetwork xi_l trained as one batched problem than one after the other?

The sequential loop makes the same steps on the same batches and ends at the same losses. What batching saves is the
cost per operation: the optimiser's and autograd's calls, and small matrix products that leave a core or the second
core idle. Where one draw's products already keep the machine busy (wide layers, large batches) nothing is left.
"""

from __future__ import annotations

import common
import torch
from torch import Tensor

import isthmus as im
from isthmus.connectors.subnetwork.train import Start, SubnetTraining, sizes
from isthmus.models import by_name, seeded
from isthmus.structure.chain import chain_of
from isthmus.structure.network_units import random_units
from isthmus.training.fit import Recipe
from isthmus.training.progress import no_progress

DRAWS = 20
ROUNDS = 3
WANTED = 3.0
"""What batching should save; reached up to widths of some 100 units, not where products fill both cores."""
CASES = (
    # what, data, model, layer, batch, steps (whole passes, each with its check of the loss)
    ("digits, 64-60x4-10, layer 1", "digits", "mlp:64-60x4-10", 1, 100, 140),
    ("digits, 64-60x4-10, layer 3", "digits", "mlp:64-60x4-10", 3, 100, 140),
    ("MNIST, 784-60x4-10, layer 1", "mnist", "mlp:784-60x4-10", 1, 100, 100),
    ("MNIST, 784-100x4-10, layer 1", "mnist", "mlp:784-100x4-10", 1, 100, 100),
    ("MNIST, 784-245x10-10, layer 5", "mnist", "mlp:784-245x10-10", 5, 100, 100),
    ("MNIST, 784-500x5-10, layer 3", "mnist", "mlp:784-500x5-10", 3, 100, 100),
)


def images(name: str) -> tuple[Tensor, Tensor]:
    if name == "digits":
        digits = im.data.load("digits")
        return digits.x_train.flatten(1), digits.y_train
    x, y = common.data()
    return x, y


def main() -> None:
    common.start(f"{DRAWS} draws of one layer's subnetwork: batched against one after the other")
    rows = []
    for what, data, model, l, batch, steps in CASES:
        x, y = images(data)
        module = seeded(lambda model=model: by_name(model), 0)
        objective = im.Objective(module, data=(x, y))
        params = objective.check(module.state_dict())
        chain = chain_of(objective.program, objective.structure)
        widths = {p: chain.widths[p] for p in range(1, chain.L)}
        K, g = sizes(widths, dict.fromkeys(widths, 0.5)), torch.Generator().manual_seed(0)
        draws = [
            Start(chain, params, l, random_units(widths, {p: K[p] for p in widths if p >= l}, g)).theta()
            for _ in range(DRAWS)
        ]
        recipe = Recipe(lr=1e-3, batch=batch, steps=steps)
        losses: dict[str, list[float]] = {}

        training = SubnetTraining(objective, chain, recipe, torch.Generator(), no_progress)
        training.features(params, l)  # computed once, and kept for both

        def train(draws=draws, training=training, l=l, params=params) -> list[float]:
            training.generator.manual_seed(1)
            return [s.loss for s in training.train(l, params, draws, target=0.0, what="")]

        def batched(train=train, losses=losses) -> None:
            losses["batched"] = train()

        def sequential(train=train, draws=draws, losses=losses) -> None:
            losses["sequential"] = [train([d])[0] for d in draws]

        times = common.in_turns({"sequential": sequential, "batched": batched}, ROUNDS)
        apart = max(
            abs(p - q) / max(abs(p), 1e-6) for p, q in zip(losses["batched"], losses["sequential"], strict=True)
        )
        rows.append((f"{what}: times faster", common.ratio(times["sequential"], times["batched"]), WANTED))
        print(
            f"  {what}: {min(times['batched']):.2f} s batched, largest relative difference of a loss {apart:.1e}",
            flush=True,
        )
    common.report(rows)


if __name__ == "__main__":
    main()
