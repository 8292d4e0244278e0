"""Figures of measured paths, and the stored runs that they are drawn from."""

from isthmus.analysis.projection import Projection as Projection
from isthmus.analysis.projection import project as project
from isthmus.plot.curves import loss_along_paths as loss_along_paths
from isthmus.plot.figures import save_figure as save_figure
from isthmus.plot.figures import svg_text as svg_text
from isthmus.plot.plane import plane as plane
from isthmus.plot.runs import StoredProfile as StoredProfile
from isthmus.plot.runs import StoredRun as StoredRun
from isthmus.plot.runs import read_run as read_run
from isthmus.plot.runs import read_runs as read_runs
from isthmus.plot.string import Strings as Strings
from isthmus.plot.string import draw_frames as draw_frames
from isthmus.plot.string import draw_string as draw_string
from isthmus.plot.string import strings as strings
