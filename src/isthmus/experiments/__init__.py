"""Experiments: declared cells, rows and figures; the runner and its results folder are in ``isthmus.sweep``."""

from isthmus.errors import InputError
from isthmus.experiments import compare_digits, freeman2017, kuditipudi2019, nguyen2019, nguyen2021, shevchenko2020
from isthmus.experiments.base import SCALES as SCALES
from isthmus.experiments.base import Experiment as Experiment
from isthmus.experiments.base import Finding as Finding
from isthmus.experiments.base import PaperValue as PaperValue
from isthmus.experiments.cells import Network as Network
from isthmus.experiments.cells import On as On
from isthmus.experiments.cells import Pair as Pair
from isthmus.experiments.cells import Problem as Problem
from isthmus.experiments.cells import Weights as Weights
from isthmus.experiments.sweep_file import SweepFile as SweepFile
from isthmus.experiments.sweep_file import read_sweep as read_sweep

EXPERIMENTS: tuple[Experiment, ...] = (
    compare_digits.EXPERIMENT,
    freeman2017.EXPERIMENT,
    kuditipudi2019.EXPERIMENT,
    nguyen2019.EXPERIMENT,
    nguyen2021.EXPERIMENT,
    shevchenko2020.EXPERIMENT,
)
"""All experiments: the command line and the documentation run over this tuple."""


def by_name(name: str) -> Experiment:
    """The experiment of that name."""
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    raise InputError("experiment", expected=f"one of {', '.join(e.name for e in EXPERIMENTS)}", got=repr(name))
