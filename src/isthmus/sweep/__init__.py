"""Many jobs: cells with content keys, a results folder that is the truth, and engines that fill it."""

from isthmus.storage import FolderMemory as FolderMemory
from isthmus.sweep.base import Engine as Engine
from isthmus.sweep.base import Failed as Failed
from isthmus.sweep.base import Shard as Shard
from isthmus.sweep.base import SweepReport as SweepReport
from isthmus.sweep.base import run_cells as run_cells
from isthmus.sweep.cells import Cell as Cell
from isthmus.sweep.cells import canonical as canonical
from isthmus.sweep.cells import identity as identity
from isthmus.sweep.cells import key_of as key_of
from isthmus.sweep.cells import with_needs as with_needs
from isthmus.sweep.local import Local as Local
from isthmus.sweep.parallel import certify_in_parallel as certify_in_parallel
from isthmus.sweep.parallel import profile_in_parallel as profile_in_parallel
from isthmus.sweep.ray import Ray as Ray
from isthmus.sweep.store import Job as Job
from isthmus.sweep.store import Store as Store
from isthmus.sweep.store import Stored as Stored
