"""The loss of parameters on data."""

from isthmus.objective.objective import Objective as Objective
