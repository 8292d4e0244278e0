"""A graph as a folder: graph.json, and the paths in folders of their own."""

from __future__ import annotations

import os
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from isthmus.errors import FileError
from isthmus.graph.minima import Edge, MinimaGraph, Minimum
from isthmus.kinds import check_kinds
from isthmus.storage import make_folder, read_json, write_json
from isthmus.storage.files import UNREADABLE, copy_file

FILE = "graph.json"
_FILES = ("path.safetensors", "profile.json", "profile.csv")


def write_graph(graph: MinimaGraph, folder: Path) -> Path:
    """graph.json, and the files of the edges and of the alignments where they are not there yet."""
    make_folder(folder)
    files = [f"{edge.folder}/{name}" for edge in graph.edges for name in _FILES]
    if graph.aligned:
        files += [f"{graph.aligned['folder']}/{i}.alignment.safetensors" for i in range(len(graph))]
    for name in files:
        if not (folder / name).exists():
            make_folder((folder / name).parent)
            copy_file(graph.folder / name, folder / name)
    write_json(folder / FILE, graph.to_dict())
    return folder


def load_graph(folder: str | os.PathLike[str]) -> MinimaGraph:
    """The graph that ``minima_graph`` or ``graph.save`` left in a folder. Errors: ``FileError`` for a damaged one.

    `folder`: that of the graph.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from isthmus import Objective, minima_graph
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(torch.eye(2), torch.tensor([0, 1])))
    >>> nets = {name: {"weight": k * torch.eye(2)} for name, k in (("a", 1.0), ("b", 2.0))}
    >>> with TemporaryDirectory() as folder:
    ...     made = minima_graph(objective, nets, folder=folder)
    ...     load_graph(folder).bottleneck == made.bottleneck
    True
    """
    check_kinds(load_graph, locals())
    file = Path(folder) / FILE
    held = read_json(file)
    try:
        if held["format"] != 1:
            raise ValueError(held["format"])
        minima, edges = tuple(Minimum(**row) for row in held["minima"]), tuple(map(_edge, held["edges"]))
        plain = {name: held[name] for name in ("tol", "goal", "method", "seed", "objective")}
        aligned = held.get("aligned", {})  # not in files of older versions
        _check_inside(aligned.get("folder", ""))
        graph = MinimaGraph(minima, edges, Path(folder), aligned=aligned, **plain)
        graph.to_dict()
    except UNREADABLE as error:
        raise FileError(file, f"is not a graph of this version ({error!r})", "make it again") from error
    return graph


def _edge(row: dict[str, Any]) -> Edge:
    """An edge; a largest loss that was not finite is no number in JSON."""
    edge = Edge(**row)
    _check_inside(edge.folder)
    return replace(edge, max=inf if edge.max is None else edge.max)


def _check_inside(folder: str) -> None:
    """Refuse a folder that is not in that of the graph."""
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ValueError(f"folder {folder}")
