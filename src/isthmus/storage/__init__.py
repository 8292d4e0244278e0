"""Files: checkpoints in, connections out and in, results as JSON and CSV; all written atomically."""

from isthmus.storage.alignments import load_alignment as load_alignment
from isthmus.storage.alignments import save_alignment as save_alignment
from isthmus.storage.checkpoints import load_params as load_params
from isthmus.storage.checkpoints import read_checkpoint as read_checkpoint
from isthmus.storage.checkpoints import save_params as save_params
from isthmus.storage.curve_npz import save_curve_npz as save_curve_npz
from isthmus.storage.files import atomic_write as atomic_write
from isthmus.storage.files import make_folder as make_folder
from isthmus.storage.files import read_json as read_json
from isthmus.storage.files import read_sealed as read_sealed
from isthmus.storage.files import sweep_temporaries as sweep_temporaries
from isthmus.storage.files import write_csv as write_csv
from isthmus.storage.files import write_json as write_json
from isthmus.storage.files import write_sealed as write_sealed
from isthmus.storage.files import write_text as write_text
from isthmus.storage.paths import load_connection as load_connection
from isthmus.storage.paths import read_header as read_header
from isthmus.storage.paths import save as save
from isthmus.storage.state import FolderMemory as FolderMemory
from isthmus.storage.tensors import digest as digest
from isthmus.storage.tensors import read_tensors as read_tensors
from isthmus.storage.tensors import save_tensors as save_tensors
