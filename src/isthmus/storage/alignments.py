"""Alignments in safetensors files: their tensors by name, and what was found as JSON."""

from __future__ import annotations

import json

from isthmus.alignment import Alignment, Renumbering
from isthmus.errors import FileError
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.seal import is_whole, sealed
from isthmus.storage.files import UNREADABLE, PathLike, plain, whole
from isthmus.storage.paths import load_connection
from isthmus.storage.tensors import digest, read_metadata, read_tensors, save_tensors
from isthmus.version import __version__

_KEY = "isthmus alignment"


def save_alignment(alignment: Renumbering, path: PathLike) -> None:
    """Write an alignment to one file, atomically: what ``load_alignment`` needs to make it on other checkpoints.

    `alignment`: what ``align`` found, or a ``Renumbering``. `path`: the file.

    The weights of its target are not in it; ``save_params`` writes those. Errors: ``FileError`` for a full disk.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from isthmus.alignment import align
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> objective = Objective(net, data=(torch.eye(2), torch.tensor([0, 1])))
    >>> a = {k: v.clone() for k, v in net.state_dict().items()}
    >>> b = objective.structure.permute(a, {"0": [1, 0]})
    >>> with TemporaryDirectory() as folder:
    ...     save_alignment(align(objective, a, b), f"{folder}/it.safetensors")
    ...     load_alignment(f"{folder}/it.safetensors", objective).permutations["0"].tolist()
    [1, 0]
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

    `path`: the file. `objective`: of the network, or of another checkpoint of it.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from isthmus.alignment import align
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> objective = Objective(net, data=(torch.eye(2), torch.tensor([0, 1])))
    >>> a = {k: v.clone() for k, v in net.state_dict().items()}
    >>> b = objective.structure.permute(a, {"0": [1, 0]})
    >>> with TemporaryDirectory() as folder:
    ...     save_alignment(align(objective, a, b), f"{folder}/it.safetensors")
    ...     load_alignment(f"{folder}/it.safetensors", objective).apply(b)["0.weight"].equal(a["0.weight"])
    True
    """
    check_kinds(load_alignment, locals())
    metadata = read_metadata(path)
    if "isthmus" in metadata:
        tensors = load_connection(path).tensors
        if not tensors:
            raise FileError(path, "holds a path whose method aligned nothing", "connect with im.Aligned(...)")
        return Renumbering.of(objective, tensors)
    if _KEY not in metadata:
        raise FileError(path, "is no alignment", "give a file of save_alignment, or a path of im.Aligned(...)")
    if not is_whole(metadata):
        raise FileError(path, "is damaged: its description does not match its digest", "align again")
    tensors, _ = read_tensors(path)
    try:
        expected = json.loads(metadata[_KEY], parse_int=whole)["digest"]
    except UNREADABLE as error:
        raise FileError(path, "is damaged: its description cannot be read", "align again") from error
    if digest(tensors) != expected:
        raise FileError(path, "is damaged: its tensors do not match their digest", "align again")
    return Renumbering.of(objective, tensors)
