"""
Eight potentials of chemistry
=============================

ANI-1x (Smith et al. 2018) is a model of the energy of molecules of H, C, N and O: a sum over the atoms, whose
surroundings go through one perceptron for each element. It was trained eight times, and all eight are published in the
wheel of torchani (MIT licence). They agree to a few kcal/mol. Is that one solution or eight?

The wheel is read as data: its weights are plain float32 files, and none of its code is run.
"""

import json

import numpy as np
import torch
from matplotlib import pyplot
from needs import wheel
from torch import Tensor, nn
from torch.func import functional_call

import isthmus as im

# %%
# Molecules
# ---------
# Those of the G2 set, as ase distributes it, that are made of H, C, N and O and have no unpaired electrons.

ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8}
g2 = json.loads(wheel("ase").read("ase/collections/g2.json"))
rows = [row for row in g2.values() if isinstance(row, dict) and "initial_magmoms" not in row]
rows = [row for row in rows if len(row["numbers"]) > 1 and set(row["numbers"]) <= set(ELEMENTS.values())]
molecules = [([list(ELEMENTS.values()).index(z) for z in row["numbers"]], np.array(row["positions"])) for row in rows]

# %%
# What an atom sees
# -----------------
# The 384 numbers that describe the surroundings of an atom: over its neighbours, Gaussians of their distance for each
# element (64), and over pairs of neighbours, functions of the angle and of the mean distance for each pair of elements
# (320). The settings are a text file of the wheel.

ani, folder = wheel("torchani"), "torchani/resources/ani-1x_8x"
lines = ani.read(f"{folder}/rHCNO-5.2R_16-3.5A_a4-8.params").decode().splitlines()
texts = {key.strip(): value for key, _, value in (line.partition("=") for line in lines if "[" in line)}
width, far, power, angles, width_3, far_3 = (
    np.array(json.loads(texts[key])) for key in ("EtaR", "ShfR", "Zeta", "ShfZ", "EtaA", "ShfA")
)
PAIRS = [(p, q) for p in range(4) for q in range(p, 4)]


def cutoff(distance, radius):
    """It falls from 1 to 0 at that radius, in angstrom."""
    return np.where(distance < radius, 0.5 * np.cos(np.pi * np.minimum(distance, radius) / radius) + 0.5, 0.0)


def surroundings(kinds, places):
    """The numbers of each atom, [atoms, 384]."""
    way = places[None] - places[:, None]
    distance = np.linalg.norm(way, axis=-1) + 1e3 * np.eye(len(kinds))  # no atom is its own neighbour
    radial = 0.25 * np.exp(-width * (distance[..., None] - far) ** 2) * cutoff(distance, 5.2)[..., None]
    near = cutoff(distance, 3.5)
    out = np.zeros((len(kinds), 384))
    for i, j in np.argwhere(distance < 1e3):
        out[i, 16 * kinds[j] :][:16] += radial[i, j]
        for k in range(j + 1, len(kinds)):
            if near[i, j] * near[i, k] > 0:
                # .95 keeps the angle differentiable; the networks were trained with it
                angle = np.arccos(0.95 * way[i, j] @ way[i, k] / (distance[i, j] * distance[i, k]))
                bend = ((1 + np.cos(angle - angles)) / 2) ** power
                reach = np.exp(-width_3 * ((distance[i, j] + distance[i, k]) / 2 - far_3) ** 2)
                place = 64 + 32 * PAIRS.index(tuple(sorted((kinds[j], kinds[k]))))
                out[i, place:][:32] += 2 * np.outer(reach, bend).ravel() * near[i, j] * near[i, k]
    return out


# %%
# The data: for each element the surroundings of a molecule's atoms [molecules, atoms, 384], and which of them count.
# The rows of molecules with fewer atoms are filled with zeros.


def dataset(shaken: float = 0.0):
    """The molecules, each atom moved by that much (a standard deviation, in angstrom)."""
    random = np.random.default_rng(0)
    all_kinds = [np.array(kinds) for kinds, _ in molecules]
    seen = [surroundings(kinds, places + shaken * random.standard_normal(places.shape)) for kinds, places in molecules]
    x = []
    for element in range(4):
        own = [one[kinds == element] for kinds, one in zip(all_kinds, seen, strict=True)]
        atoms = max(len(one) for one in own)
        filled = np.stack([np.pad(one, ((0, atoms - len(one)), (0, 0))) for one in own])
        counts = np.arange(atoms) < np.array([[len(one)] for one in own])
        x += [torch.tensor(filled).float(), torch.tensor(counts).float()]
    return tuple(x)


# %%
# The networks
# ------------
# One module with four perceptrons. The loss compares energies in kcal/mol with the mean of the eight networks.

WIDTHS = {"H": (160, 128, 96), "C": (144, 112, 96), "N": (128, 112, 96), "O": (128, 112, 96)}


class Potential(nn.Module):
    """The energy of molecules, without that of their free atoms."""

    def __init__(self):
        super().__init__()
        for element, (n, m, k) in WIDTHS.items():
            parts = [nn.Linear(384, n), nn.CELU(0.1), nn.Linear(n, m), nn.CELU(0.1), nn.Linear(m, k), nn.CELU(0.1)]
            self.add_module(element, nn.Sequential(*parts, nn.Linear(k, 1)))

    def forward(self, *x: Tensor) -> Tensor:
        energies = [net(x[2 * i]).squeeze(-1) * x[2 * i + 1] for i, net in enumerate(self.children())]
        return 627.5095 * torch.cat(energies, 1).sum(1)


def published(member: int) -> im.Params:
    """The weights of one of the eight, from float32 files."""
    weights = {}
    for element in WIDTHS:
        for layer in range(4):
            name = f"{folder}/train{member}/networks/ANN-{element}.nnf-l{layer + 1}"
            w, b = (torch.frombuffer(bytearray(ani.read(f"{name}.{kind}param")), dtype=torch.float32) for kind in "wb")
            weights |= {f"{element}.{2 * layer}.weight": w.view(len(b), -1), f"{element}.{2 * layer}.bias": b}
    return weights


networks = [published(member) for member in range(8)]
module = Potential()


def with_labels(x):
    """The mean over the eight networks is the label."""
    with torch.no_grad():
        return x, torch.stack([functional_call(module, network, x) for network in networks]).mean(0)


objective = im.Objective(module, "mse", with_labels(dataset()))
held_out = objective.on(with_labels(dataset(shaken=0.05)))
a, b = networks[:2]
print(f"{len(molecules)} molecules; mean squared deviations {objective.loss(a):.3g} and {objective.loss(b):.3g}")

# %%
# Three paths
# -----------
# The straight line; the line to b with its hidden units renumbered by what they compute, which the library derives from
# the module above (twelve groups of units, three for each element); and a curve from there, trained on these molecules.

lines = {
    "straight": im.connect(objective, a, b, im.Linear()),
    "aligned": im.connect(objective, a, b, im.Aligned(im.Linear(), im.ActivationMatching())),
}
recipe = im.Recipe(lr=None, epochs=250, batch=128, beta2=0.95)
curve = im.connect(objective, a, b, im.Aligned(im.Bezier(recipe=recipe), im.ActivationMatching()), seed=0)
paths = {**lines, "curve": curve}
profiles = {name: im.profile(objective, path, 21, test=held_out) for name, path in paths.items()}

_, axes = pyplot.subplots(1, 3, figsize=(14, 4), layout="constrained")
for ax, (name, profile) in zip(axes, profiles.items(), strict=True):
    profile.plot(ax).set(title=name, ylabel="mean squared deviation, (kcal/mol)²")

# %%
# The molecules that were shaken were not trained on, and the curve is not as low there: on so few molecules it learns
# by heart.

shaken = {name: profile.test.excess for name, profile in profiles.items() if profile.test is not None}
for name, profile in profiles.items():
    print(f"{name}: excess {profile.excess:.4g}, on shaken molecules {shaken[name]:.4g}")

# %%
# Proofs
# ------
# What each path costs at most, for every t, on the first six molecules; more of them take longer.

few = objective.subset(6)
certificates = {name: im.certify(few, path, gap=0.05) for name, path in paths.items()}
for name, certificate in certificates.items():
    print(f"{name}: {certificate.summary}")

# %%
# The mean of all eight
# ---------------------
# Three ways to average eight networks: as they are, each renumbered like the first, and all in one numbering
# (:func:`isthmus.align_many`). The root of the loss is an error in kcal/mol.


def mean(several: list[im.Params]) -> im.Params:
    return {name: torch.stack([one[name] for one in several]).mean(0) for name in several[0]}


together = [one.target for one in im.align_many(objective, networks, im.ActivationMatching())]
pairwise = [a, *(im.align(objective, a, one, im.ActivationMatching()).target for one in networks[1:])]
soups = {"as they are": networks, "each like the first": pairwise, "all together": together}
errors = {name: objective.loss(mean(several)) ** 0.5 for name, several in soups.items()}

_, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
axes.bar_label(axes.bar(list(errors), list(errors.values()), color="#0b78c2", width=0.6), fmt="%.1f")
axes.set(ylabel="error of the mean network, kcal/mol", title="eight potentials averaged")
axes.margins(y=0.15)

# %%
# What is left of the straight line's excess on the trained curve, on the molecules it was trained on:

answer = profiles["curve"].excess / profiles["straight"].excess
print(f"answer: {answer:.3g} of {profiles['straight'].excess:.4g} (kcal/mol)² is left")

assert profiles["straight"].excess > 1000
assert profiles["aligned"].excess < 0.2 * profiles["straight"].excess
assert answer < 1e-3
assert all(certificate.proved and certificate.close for certificate in certificates.values())
assert errors["all together"] < errors["each like the first"] < errors["as they are"]
pyplot.show()
