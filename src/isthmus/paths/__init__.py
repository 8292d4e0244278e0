"""Segments and paths in weight space."""

from isthmus.paths.by_length import by_length as by_length
from isthmus.paths.by_length import length_of as length_of
from isthmus.paths.level_curve import LevelCurve as LevelCurve
from isthmus.paths.level_curve import LevelLayer as LevelLayer
from isthmus.paths.path import HasPath as HasPath
from isthmus.paths.path import Path as Path
from isthmus.paths.path import path_of as path_of
from isthmus.paths.segment import Curve as Curve
from isthmus.paths.segment import Segment as Segment
