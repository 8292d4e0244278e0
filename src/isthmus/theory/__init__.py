"""Which theorems apply to a pair of networks: their premises measured, and the bounds they give."""

from isthmus.theory.table import Row as Row
from isthmus.theory.table import Theory as Theory
from isthmus.theory.theory import THEOREMS as THEOREMS
from isthmus.theory.theory import theory as theory
