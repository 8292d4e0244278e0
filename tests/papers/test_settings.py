"""The tables of settings on the pages: every cell of "paper" and "laptop" is read from the experiments' own jobs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from isthmus.experiments.jobs import Network, On, Pair
from isthmus.papers import by_name
from isthmus.papers.freeman2017.jobs import String
from isthmus.papers.kuditipudi2019.jobs import Losses, Noise, Subnetworks
from isthmus.papers.kuditipudi2019.section5 import Apart
from isthmus.papers.nguyen2021.jobs import ExperimentA, ExperimentB, PathA
from isthmus.papers.shevchenko2020.jobs import Trials
from isthmus.sweep import with_needs
from isthmus.training.fit import Recipe

DOCS = Path(__file__).parents[2] / "docs" / "papers"
Reader = Callable[[list[Any]], str]


@cache
def cells(page: str, scale: str) -> list[Any]:
    return with_needs(by_name(page).cells(scale))


def joined(values) -> str:
    """Different values in a fixed order: numbers by size, texts as they come."""
    found = list(dict.fromkeys(values))
    found = sorted(found) if all(isinstance(v, int | float) for v in found) else found
    return ", ".join(f"{v:g}" if isinstance(v, int | float) else str(v) for v in found) or "none"


def trained(recipe: Recipe, epoch: int | None = None) -> str:
    """A recipe in words; numbers of steps in epochs where that is said."""

    def length(steps: int) -> str:
        return f"{steps / epoch:g} epochs" if epoch else f"{steps} steps"

    text = f"{recipe.optimizer} {recipe.lr:g}, batch {recipe.batch}, at most {length(recipe.steps)}"
    if recipe.optimizer == "sgd":
        text += f", momentum {recipe.momentum:g}" + (" (Nesterov)" if recipe.nesterov and recipe.momentum else "")
    if recipe.weight_decay:
        text += f", decay {recipe.weight_decay:g}"
    if recipe.schedule == "steps":
        assert recipe.every is not None
        text += f", times {recipe.gamma:g} every {length(recipe.every)}"
        return text + (f" after {length(recipe.hold)}" if recipe.hold else "")
    return text + {"constant": ", constant", "plateau": f", times {recipe.gamma:g} on a plateau"}.get(
        recipe.schedule, f", {recipe.schedule}"
    )


def of(kind: type, where: Callable[[Any], bool], what: Callable[[Any], Any]) -> Reader:
    """What the jobs of a kind say."""
    return lambda all_of: joined(what(c) for c in all_of if isinstance(c, kind) and where(c))


# -- Nguyen, Brechet, Mondelli 2021

MODELS = {
    "MNIST 10 x 245": "mlp:784-245x10-10", "CIFAR-10 5 x 500": "mlp:3072-500x5-10", "VGG-11": "vgg11",
    "MNIST, two layers": "mlp:784-", "CIFAR-10, two layers": "mlp:3072-",
}  # fmt: skip


def is_model(problem: Any, name: str) -> bool:
    if not problem.model.startswith(MODELS[name]):
        return False
    return "two layers" not in name or problem.model.endswith("x2-10")


def epochs(problem: Any) -> int:
    size = problem.examples or {"mnist": 60_000, "cifar10": 50_000}[problem.data]
    return size // 100


def originals(name: str) -> Reader:
    def read(all_of: list[Any]) -> str:
        found = [c for c in all_of if isinstance(c, Network) and is_model(c.problem, name)]
        printed = found[0].recipe.optimizer == "sgd"
        return joined(trained(c.recipe, epochs(c.problem) if printed else None) for c in found)

    return read


def xi(name: str, p: float = 0.5, layer: int | None = None) -> Reader:
    """Of Experiment A; of one layer where layers are cells, else of those without a recipe of their own."""

    def own(c: ExperimentA) -> bool:
        chosen = c.p == p and is_model(c.network.problem, name)
        special = p == 0.25 and c.layers in ((0,), (1,)) and c.network.recipe.optimizer == "sgd"
        return chosen and (c.layers == (layer,) if layer is not None else not special)

    def read(all_of: list[Any]) -> str:
        found = [c for c in all_of if isinstance(c, ExperimentA) and own(c)]
        printed = bool(found) and found[0].recipe.optimizer == "sgd"
        return joined(trained(c.recipe, epochs(c.network.problem) if printed else None) for c in found)

    return read


def of_a(what: Callable[[ExperimentA], Any]) -> Reader:
    return of(ExperimentA, lambda c: "digits" not in c.network.problem.data, what)


def of_b(what: Callable[[ExperimentB], Any]) -> Reader:
    return of(ExperimentB, lambda c: "digits" not in c.network.problem.data, what)


def of_original(name: str, what: Callable[[Network], Any]) -> Reader:
    return of(Network, lambda c: is_model(c.problem, name), what)


def looks(c: ExperimentA) -> str:
    return "no" if c.looks_from is None else f"from epoch {c.looks_from / epochs(c.network.problem):g}"


def widths(data: str) -> Reader:
    name = f"{data}, two layers"
    return of(Network, lambda c: is_model(c.problem, name), lambda c: int(c.problem.model.split("-")[1].split("x")[0]))


def path_a(all_of: list[Any]) -> str:
    return "the networks of Experiment A" if any(isinstance(c, PathA) for c in all_of) else "trained again"


NGUYEN_2021: dict[str, Reader] = {
    "Table 1a, O11": originals("MNIST 10 x 245"),
    "Table 1a, O3": originals("MNIST, two layers"),
    "Table 1a, A11": xi("MNIST 10 x 245"),
    "Table 1a, A3": xi("MNIST, two layers"),
    "Table 1b, O6": originals("CIFAR-10 5 x 500"),
    "Table 1b, O3": originals("CIFAR-10, two layers"),
    "Table 1b, A6": xi("CIFAR-10 5 x 500"),
    "Table 1b, A3": xi("CIFAR-10, two layers"),
    "Table 1c, O": originals("VGG-11"),
    "Table 1c, A": xi("VGG-11"),
    "Table 1c, A, p = 1/4": xi("VGG-11", 0.25),
    "Table 1c, A, p = 1/4, l = 0": xi("VGG-11", 0.25, 0),
    "Table 1c, A, p = 1/4, l = 1": xi("VGG-11", 0.25, 1),
    "originals end at": of(
        Network, lambda c: c.problem.data != "digits",
        lambda c: "no error" if c.until == "error" else f"loss {c.target:g}",
    ),
    "A ends at no error": of_a(looks),
    "A keeps 1 - p": of_a(lambda c: f"{1 - c.p:.3g}"),
    "xi_l start": of_a(lambda c: c.init),
    "T_A": of_a(lambda c: c.draws),
    "T_B": of_b(lambda c: c.draws),
    "B drops p": of_b(lambda c: f"{c.p:.3g}"),
    "B times n / kept": of_b(lambda c: "yes" if c.rescale else "no"),
    "path (A)": path_a,
    "networks, MNIST 10 x 245": of_original("MNIST 10 x 245", lambda c: c.seed + 1),
    "VGG-11": of_original("VGG-11", lambda c: c.problem.model),
    "widths, MNIST": widths("MNIST"),
    "widths, CIFAR-10": widths("CIFAR-10"),
}  # fmt: skip


# -- Freeman & Bruna 2017


def strings(figure: str, what: Callable[[Any], Any]) -> Reader:
    return of(String, lambda c: c.figure == figure, what)


def start(c: String) -> str:
    problem: Any = c.a.problem
    if hasattr(problem, "spread"):
        return "torch's" if problem.spread is None else f"U(-{problem.spread:g}, {problem.spread:g})"
    return getattr(problem, "start_of", "U(-0.1, 0.1)")


def ends(c: String) -> str:
    return trained(c.a.recipe)


def checks(c: String) -> str:
    return f"every {c.a.recipe.check} steps"


def model(c: String) -> str:
    problem: Any = c.a.problem
    return getattr(problem, "problem", problem).model


def levels(figure: str) -> Reader:
    return of(String, lambda c: c.figure == figure, lambda c: c.level)


FREEMAN: dict[str, Reader] = {
    "polynomials, start": strings("2", start),
    "polynomials, training": strings("2", ends),
    "polynomials, points": strings("2", lambda c: c.a.problem.examples),
    "polynomials, beads at": strings("2", lambda c: c.method.position),
    "polynomials, second": strings("2, at the maximum", lambda c: c.method.position),
    "polynomials, levels": levels("2"),
    "cubic, levels": lambda all_of: str(len({c.level for c in all_of if isinstance(c, String) and c.figure == "3"})),
    "MNIST, network": strings("4", model),
    "MNIST, start": strings("4", start),
    "MNIST, pixels": strings("4", lambda c: "[0, 1]" if c.a.problem.scaled else "[-1, 1]"),
    "MNIST, training": strings("4", ends),
    "MNIST, levels": levels("4"),
    "MNIST, beads": strings("4", lambda c: f"{c.method.alpha * c.reach:.3g}, below {c.reach:g}"),
    "CIFAR-10, network": strings("5", model),
    "CIFAR-10, start": strings("5", start),
    "CIFAR-10, crops and decay": strings("5", lambda c: f"{c.a.problem.crop}, {c.a.problem.decay:g}"),
    "CIFAR-10, training": strings("5", ends),
    "CIFAR-10, levels": levels("5"),
    "Penn Treebank, network": strings("6", lambda c: f"{model(c)} on {c.a.problem.data}"),
    "Penn Treebank, training": strings("6", ends),
    "Penn Treebank, checks": strings("6", checks),
    "Penn Treebank, levels": levels("6"),
}


# -- Kuditipudi et al. 2019


def filters(what: Callable[[Network], Any]) -> Reader:
    return of(Subnetworks, lambda c: True, lambda c: what(c.end.network))


def vgg(what: Callable[[Network], Any]) -> Reader:
    return of(Network, lambda c: c.problem.model.startswith("vgg") and "dropout" in c.problem.model, what)


def measured(c: Any) -> str:
    problem = c.end.problem
    return f"{problem.examples} " + ("first" if problem.drawn is None else "random")


KUDITIPUDI: dict[str, Reader] = {
    "MNIST, network": filters(lambda n: n.problem.model),
    "MNIST, training": filters(lambda n: trained(n.recipe)),
    "MNIST, trials": filters(lambda n: n.seed + 1),
    "draws per p": of(Subnetworks, lambda c: True, lambda c: c.draws),
    "losses on": of(Subnetworks, lambda c: True, measured),
    "narrow networks": of(
        Losses, lambda c: c.figure == "2 right", lambda c: int(c.end.network.problem.model.split(":")[1])
    ),
    "VGG-11": vgg(lambda n: n.problem.model),
    "VGG-11, training": vgg(lambda n: trained(n.recipe, 390)),
    "noise on": of(Noise, lambda c: True, lambda c: c.end.problem.examples),
    "paths of VGG-11 on": of(
        Pair, lambda c: isinstance(c.a, On) and c.a.problem.model.startswith("vgg"), lambda c: c.a.problem.examples
    ),
    "section 5, h": of(Apart, lambda c: True, lambda c: c.h),
}  # fmt: skip


# -- Shevchenko & Mondelli 2020


def trials(task: str, what: Callable[[Trials], Any]) -> Reader:
    return of(Trials, lambda c: c.task.label == task and c.init == "unimodal", what)


def time_of(c: Trials) -> str:
    size = c.task.trained_on
    assert size is not None
    return f"{c.schedule.T * c.schedule.batch / size:.3g}"


def middle(c: Trials) -> float:
    return c.middle


SHEVCHENKO: dict[str, Reader] = {
    "T, MNIST, two layers": trials("mnist, 2 layers", time_of),
    "T, CIFAR-10, VGG-16 features, three layers": trials("cifar10, vgg16 features, 3 layers", time_of),
    "T, CIFAR-10, VGG-16 features, four layers": trials("cifar10, vgg16 features, 4 layers", time_of),
    "T, CIFAR-10, pixels": trials("cifar10, 3 layers", time_of),
    "widths, MNIST": trials("mnist, 2 layers", lambda c: c.N),
    "widths, CIFAR-10, VGG-16 features": trials("cifar10, vgg16 features, 3 layers", lambda c: c.N),
    "batch": trials("mnist, 2 layers", lambda c: c.schedule.batch),
    "step times N is constant": trials("mnist, 2 layers", lambda c: "yes" if c.schedule.reference else "no"),
    "intermediate time, MNIST": trials("mnist, 2 layers", middle),
    "trials, MNIST": trials("mnist, 2 layers", lambda c: max(c.seeds) + 1),
    "image size": trials("cifar10, vgg16 features, 3 layers", lambda c: c.task.side),
}


# -- Nguyen 2019


def joined_paths(theorem: str) -> Reader:
    return lambda all_of: joined(
        c.setting.N for c in all_of if getattr(c, "theorem", "") == theorem and hasattr(c, "num_points")
    )


NGUYEN_2019: dict[str, Reader] = {
    f"examples N, Theorem {theorem}": joined_paths(theorem) for theorem in ("3.2", "5.1", "6.1")
} | {
    "pairs of each kind": lambda all_of: joined(
        [1 + max(c.seed for c in all_of if getattr(c, "theorem", "") == "5.1" and hasattr(c, "seed"))]
    ),
    "norm of rays": lambda all_of: joined(c.size for c in all_of if type(c).__name__ == "Far"),
}

PAGES = {
    "nguyen2021": NGUYEN_2021, "freeman2017": FREEMAN, "kuditipudi2019": KUDITIPUDI, "shevchenko2020": SHEVCHENKO,
    "nguyen2019": NGUYEN_2019,
}  # fmt: skip
HEAD = "| setting | printed | ours, `paper` | ours, `laptop` | why they differ |"


def table_of(page: str) -> dict[str, list[str]]:
    """The rows of the table of settings of a page."""
    lines = (DOCS / f"{page}.md").read_text(encoding="utf-8").split(HEAD)[1].splitlines()[2:]
    rows = [line.strip("|").split(" | ") for line in lines[: lines.index("")]]
    return {row[0].strip(): [entry.strip() for entry in row[1:]] for row in rows}


@pytest.mark.parametrize(("page", "setting"), [(p, s) for p, readers in PAGES.items() for s in readers])
def test_the_settings_on_a_page_are_those_of_its_jobs(page, setting):
    printed, paper, laptop, why = table_of(page)[setting]
    read = PAGES[page][setting]
    assert paper == read(cells(page, "paper"))
    assert laptop == read(cells(page, "laptop"))
    assert printed
    assert why or printed == paper == laptop


def test_no_setting_of_a_page_is_left_without_a_reader():
    for page, readers in PAGES.items():
        assert table_of(page).keys() == readers.keys()
