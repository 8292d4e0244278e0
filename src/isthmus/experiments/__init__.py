"""Experiments: declared cells, rows and figures; the runner and its results folder are in ``isthmus.sweep``."""

from isthmus.experiments.claims import Claim as Claim
from isthmus.experiments.claims import Finding as Finding
from isthmus.experiments.jobs import Network as Network
from isthmus.experiments.jobs import On as On
from isthmus.experiments.jobs import Pair as Pair
from isthmus.experiments.jobs import Problem as Problem
from isthmus.experiments.jobs import Weights as Weights
from isthmus.experiments.page import SCALES as SCALES
from isthmus.experiments.page import Experiment as Experiment
from isthmus.experiments.page import PaperValue as PaperValue
from isthmus.experiments.sweep_file import SweepFile as SweepFile
from isthmus.experiments.sweep_file import read_sweep as read_sweep
from isthmus.experiments.tables import Table as Table
