"""Paths inside sublevel sets (Nguyen 2019): the method, its lemmas, and rays on which the loss stays."""

from isthmus.connectors.sublevel.columns import full_rank_features as full_rank_features
from isthmus.connectors.sublevel.columns import move_onto as move_onto
from isthmus.connectors.sublevel.columns import replace_features as replace_features
from isthmus.connectors.sublevel.columns import shifts as shifts
from isthmus.connectors.sublevel.method import Sublevel as Sublevel
