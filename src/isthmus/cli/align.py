"""The command that brings the units of several networks into the numbering of the first."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.alignment import Alignment, Matching, Renumbering, align_many
from isthmus.alignment import align as aligned
from isthmus.alignment.matching import Matched, MatchingTask
from isthmus.analysis.aligned_lines import AlignedLines, StraightLines, aligned_lines
from isthmus.analysis.ensemble import average_of
from isthmus.cli.common import Opened, matching_of, opened, stored_in
from isthmus.cli.console import number, print_json, progress_bar, show_table
from isthmus.cli.options import PATHS, Asked, BatchNorm, Json, Quiet, Seed, with_asked
from isthmus.errors import InputError, MissingExtraError
from isthmus.evaluate.batchnorm import POLICIES, followed
from isthmus.graph.search import names_of
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.storage import load_alignment, save_alignment, save_params, write_json
from isthmus.storage.files import results_folder
from isthmus.stored import SAID
from isthmus.training.progress import Progress

_WEIGHTS, _ENDING = ".safetensors", ".alignment.safetensors"


@with_asked(*PATHS)
def align(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more files or folders of weights of one network.")],
    asked: Asked,
    out: Annotated[
        Path, typer.Option("--out", help="Of two: where to write B, renumbered (.safetensors); or a folder for all.")
    ],
    by: Annotated[
        str,
        typer.Option(
            "--by",
            help="activations; weights; rotations; or the file of an alignment, or of a path of Aligned, to make on B.",
        ),
    ] = "activations",
    option: Annotated[
        list[str] | None, typer.Option("--option", help="KEY=VALUE, a field of the matching; repeatable.")
    ] = None,
    num_points: Annotated[
        int, typer.Option("--num-points", help="Measured on each straight line, before and after; 0: none.", min=0)
    ] = 21,
    bn: BatchNorm = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Renumber the hidden units of B, C, ... to be those of A; what they compute stays the same, and is checked to.

    Writes the weights, and beside them the permutations, which --by takes for another checkpoint of the run; the loss
    on the straight lines before and after, with a picture. Into a folder also the average of the networks, and a page.
    """
    files = _Files.of(checkpoints, out)
    found = opened(checkpoints, asked)
    matching = _matching(by, option or [], found.objective)
    with results_folder(files.folder), progress_bar(quiet) as progress:
        made = _made(found, matching, seed, progress)
        lines = None
        if num_points:
            lines = aligned_lines(
                found.objective, found.ends, made, test=found.test, num_points=num_points, bn=bn, progress=progress
            )
    several = (made,) if isinstance(made, Alignment) else made[1:]
    files.write(found, several, bn)
    document = {"format": 1, "alignments": [one.to_dict() for one in several], "before": None, "after": None}
    document |= {} if lines is None else lines.to_dict()
    document |= {"names": files.names, "by": by, "options": option or [], "seed": seed, **found.about}
    files.draw(document)
    if as_json:
        top = several[0].to_dict() if len(several) == 1 else {}
        shown = top | document | {"out": str(out), "alignment": str(files.alignments[0])}
        print_json(shown)
        return 0
    _show(files.names, several, lines)
    print("written: " + "\n         ".join(map(str, files.done)))
    return 0


def _made(found: Opened, matching: Matching, seed: int, progress: Progress) -> Alignment | tuple[Alignment, ...]:
    if len(found.ends) != 2:
        return align_many(found.objective, found.ends, matching, seed=seed, progress=progress)
    a, b = found.ends
    return aligned(found.objective, a, b, matching, seed=seed, progress=progress)


@dataclass(frozen=True)
class _Files:
    """What is written where. `weights`, `alignments`: for each network after the first; `average`: into a folder only.

    `beside`: what the names of the document and of the pictures begin with; `done`: what was written.
    """

    names: list[str]
    checkpoints: list[Path]
    weights: list[Path]
    beside: Path
    average: Path | None
    done: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoints: list[Path], out: Path) -> _Files:
        """Errors: ``InputError`` for fewer than two checkpoints, for more than two into one file, and for a folder in
        which one of them would be written over."""
        if len(checkpoints) < 2:
            raise InputError("checkpoints", expected="two or more", got=len(checkpoints))
        different = len({*checkpoints}) == len(checkpoints)
        names = names_of(checkpoints) if different else [str(i) for i in range(len(checkpoints))]
        if out.suffix != _WEIGHTS:
            own = [out / f"{name.replace('/', '-')}{_WEIGHTS}" for name in names]
            average = out / f"average{_WEIGHTS}"
            if {file.resolve() for file in (*own, average)} & {file.resolve() for file in checkpoints}:
                raise InputError("--out", expected="another folder than that of the checkpoints", got=str(out))
            return cls(names, checkpoints, own[1:], out / "alignment", average)
        if len(checkpoints) > 2:
            raise InputError("--out", expected="a folder, for more than two networks", got=str(out))
        return cls(names, checkpoints, [out], out.with_suffix(".alignment"), None)

    @property
    def folder(self) -> Path:
        """That of the weights."""
        return self.weights[0].parent

    @property
    def alignments(self) -> list[Path]:
        """Beside the weights."""
        return [file.with_suffix(_ENDING) for file in self.weights]

    def write(self, found: Opened, several: Sequence[Alignment], bn: str | None) -> None:
        """The weights, how they were renumbered, and into a folder the mean of all."""
        for source, file, beside, one in zip(self.checkpoints[1:], self.weights, self.alignments, several, strict=True):
            held = stored_in(source)
            about = {k: held[k] for k in SAID if isinstance(held.get(k), str)}
            self._save(one.target, file, about | {"model": found.model, "data": found.data})
            save_alignment(one, beside)
            self.done.append(beside)
        if self.average is not None:
            policy = followed(found.objective, bn or POLICIES[0])
            mean = average_of(found.objective, [found.ends[0], *(one.target for one in several)], policy)
            self._save(mean, self.average, {"model": found.model, "data": found.data})

    def _save(self, params: Params, file: Path, about: dict[str, str]) -> None:
        save_params({k: v.cpu() for k, v in params.items()}, file, about)
        self.done.append(file)

    def draw(self, document: Mapping[str, Any]) -> None:
        """The document, and where matplotlib is there its picture, and into a folder a page."""
        from isthmus.report.alignment import write_alignment_files

        where = self.beside.with_name(f"{self.beside.name}.json")
        write_json(where, document)
        self.done.append(where)
        try:
            self.done.extend(write_alignment_files(where, page=self.average is not None))
        except MissingExtraError as error:
            print(f"note: no picture: {error}", file=sys.stderr)


def _show(names: Sequence[str], several: Sequence[Alignment], lines: AlignedLines | None) -> None:
    """What moved, and what it was worth."""
    groups = several[0].permutations
    rows = [(k, len(v), *(f"{one.moved[k]:.0%}" for one in several)) for k, v in groups.items()]
    show_table(("units", "number", *(f"moved in {name}" for name in names[1:])), rows)
    for name, one in zip(names[1:], several, strict=True):
        before, after = map(number, one.distance)
        print(f"{name}: distance {before} -> {after}; outputs changed by {one.function_error:.1e} of their size")
        for note in one.notes:
            print(f"note: {note}")
    if lines is None:
        return
    rows = [
        (f"{names[i]} - {names[j]}", before.max, before.excess, after.max, after.excess)
        for ((i, j), before), after in zip(lines.before.profiles.items(), lines.after.profiles.values(), strict=True)
    ]
    show_table(("straight line", "max loss", "excess", "aligned: max loss", "excess"), rows)
    show_table(("average", *lines.after.scores), [(n, *one.scores.values()) for n, one in _both(lines)])


def _both(lines: AlignedLines) -> list[tuple[str, StraightLines]]:
    return [("as given", lines.before), ("aligned", lines.after)]


def _matching(by: str, options: list[str], objective: Objective) -> Matching:
    if not Path(by).is_file():
        return matching_of(by, options)
    if options:
        raise InputError("--option", expected="none with a stored alignment", got=options)
    return _Again(load_alignment(by, objective))


@dataclass(frozen=True)
class _Again(Matching):
    """What was found for another checkpoint of the run."""

    made: Renumbering

    def find(self, task: MatchingTask) -> Matched:
        """The same permutations, rotations and norms."""
        before, made = {k: task.b[k].double() for k in self.made.before}, self.made
        return Matched(made.permutations, rotations=made.rotations, norms=made.norms, before=before, frame=made.frame)
