"""Experiments: declared cells, rows and figures; the runner and its results folder are in ``isthmus.sweep``."""

from isthmus.errors import InputError
from isthmus.experiments import compare_digits
from isthmus.experiments.jobs import Network as Network
from isthmus.experiments.jobs import On as On
from isthmus.experiments.jobs import Pair as Pair
from isthmus.experiments.jobs import Problem as Problem
from isthmus.experiments.jobs import Weights as Weights
from isthmus.experiments.page import SCALES as SCALES
from isthmus.experiments.page import Experiment as Experiment
from isthmus.experiments.page import Finding as Finding
from isthmus.experiments.page import PaperValue as PaperValue
from isthmus.experiments.sweep_file import SweepFile as SweepFile
from isthmus.experiments.sweep_file import read_sweep as read_sweep
from isthmus.papers.freeman2017 import page as freeman2017
from isthmus.papers.kuditipudi2019 import page as kuditipudi2019
from isthmus.papers.nguyen2019 import page as nguyen2019
from isthmus.papers.nguyen2021 import page as nguyen2021
from isthmus.papers.shevchenko2020 import page as shevchenko2020

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
