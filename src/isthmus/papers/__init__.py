"""The published experiments: one folder per paper, with everything of it."""

from isthmus.errors import InputError
from isthmus.experiments import Experiment, compare_digits
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
