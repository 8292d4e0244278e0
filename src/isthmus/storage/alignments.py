"""Alignments in safetensors files: their tensors by name, and what was found as JSON."""

from __future__ import annotations

import json

from isthmus.alignment import Alignment, Renumbering
from isthmus.errors import FileError
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.seal import is_changed, sealed
from isthmus.storage.files import UNREADABLE, PathLike, plain, whole
from isthmus.storage.paths import load_connection
from isthmus.storage.tensors import digest, read_metadata, read_tensors, save_tensors
from isthmus.version import __version__

_KEY = "isthmus alignment"


def save_alignment(alignment: Renumbering, path: PathLike) -> None:
    """Write an alignment to one file, atomically: what ``load_alignment`` needs to make it on other checkpoints.

    The weights of its target are not in it; ``save_params`` writes those. Errors: ``FileError`` for a full disk.
    """
    check_kinds(save_alignment, locals())
    found = alignment.to_dict() if isinstance(alignment, Alignment) else {}
    about = {"isthmus": __version__, "found": plain(found, "alignment", nonfinite=True)}
    about |= {"digest": digest(alignment.tensors)}
    save_tensors(alignment.tensors, path, sealed({_KEY: json.dumps(about)}))


def load_alignment(path: PathLike, objective: Objective) -> Renumbering:
    """The alignment in a file of ``save_alignment``, or in the path of an ``Aligned`` method that ``save`` wrote.

    ``load_alignment(path, objective).apply(params)`` gives another checkpoint of the run of b the same numbering.
    Errors: ``FileError`` for a damaged file and for one without an alignment, ``InputError`` for another network's.
    """
    check_kinds(load_alignment, locals())
    metadata = read_metadata(path)
    if "isthmus" in metadata:
        tensors = load_connection(path).tensors
        if not tensors:
            raise FileError(path, "holds a path whose method aligned nothing", "connect with im.Aligned(...)")
        return Renumbering.of(objective, tensors)
    if is_changed(metadata):
        raise FileError(path, "is damaged: its description does not match its digest", "align again")
    if _KEY not in metadata:
        raise FileError(path, "is no alignment", "give a file of save_alignment, or a path of im.Aligned(...)")
    tensors, _ = read_tensors(path)
    try:
        expected = json.loads(metadata[_KEY], parse_int=whole)["digest"]
    except UNREADABLE as error:
        raise FileError(path, "is damaged: its description cannot be read", "align again") from error
    if digest(tensors) != expected:
        raise FileError(path, "is damaged: its tensors do not match their digest", "align again")
    return Renumbering.of(objective, tensors)
