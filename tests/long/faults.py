"""Commands that are refused the disk at each call that writes, and given again: one line, nothing half-written.

    python -m tests.long.faults COUNT [COMMAND ...]        # at most COUNT calls per command; seed 0, or SEED=n

At the n-th call that makes, opens for writing, renames or removes a file of the folder, and at all later ones, the
disk is full or read-only, or the folder may not be written to; from a full disk files can be removed. The command
must end as if nothing had been, or with exit code 2 and one line; each file that is there then must be whole: that of
the run that was left alone, or state from which the command, given again, ends with the same bytes. At last two and
then eight processes are given the command at once.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path

import isthmus as im
from isthmus.graph import stored as graph
from tests.long.watched import (
    Alone,
    Ended,
    Event,
    Tally,
    anew,
    commands,
    contents,
    differences,
    forked,
    main,
    nothing,
    wait,
)  # fmt: skip

REFUSED = {errno.ENOSPC: "w", errno.EDQUOT: "w", errno.EROFS: "wd", errno.EACCES: "wd"}
"""What is refused by each error; where nothing can be removed, a temporary stays until the command is given again."""


def faults(name: str, count: int, given: Path, root: Path, r: random.Random) -> Tally:
    """One command, refused at so many of its calls, or at all where they are fewer."""
    words, tally = commands(given, root)[name], Tally()
    alone = Alone.run(words, root, tally)
    if alone is None:
        return tally
    calls = range(1, alone.ended.changes + 1)
    for number in sorted(r.sample(calls, min(count, len(calls)))):
        anew(root)
        tally.hindered += 1
        code = r.choice([*REFUSED])
        _judge(wait(*forked(words, root, _refuses(number, code))), alone.ended, tally)
        found = [text for text in _half_written(alone.once, root) if ".tmp" not in text or "d" not in REFUSED[code]]
        tally.found.update(f"after a refusal, {text}" for text in found)
        alone.count(wait(*forked(words, root, nothing)), root, tally)
    for together in (2, 8):
        anew(root)
        tally.hindered += together
        for ended in [wait(*process) for process in [forked(words, root, nothing) for _ in range(together)]]:
            _judge(ended, alone.ended, tally)
        alone.count(wait(*forked(words, root, nothing)), root, tally)
    return tally


def _refuses(number: int, code: int) -> Event:
    changes = 0

    def event(count: int, name: str, mode: str) -> None:
        nonlocal changes
        changes += mode != "r"
        if changes >= number and mode in REFUSED[code]:
            raise OSError(code, os.strerror(code), "a file")

    return event


def _judge(ended: Ended, first: Ended, tally: Tally) -> None:
    lines = [line for line in ended.said.splitlines() if line.startswith(("error:", "failed:", "Traceback"))]
    # a sweep says which cells it could not do, and does the others
    clear = ended.code == 1 and all(line.startswith("failed:") for line in lines)
    clear |= ended.code == 2 and len(lines) == 1 and lines[0].startswith("error:")
    if ended.code != first.code and not clear:
        tally.found[f"exit code {ended.code}: {ended.said[-300:]!r}"] += 1


def _half_written(once: Mapping[str, str], root: Path) -> list[str]:
    """Files of the result that are not as they should be, and temporaries; states are judged by what comes of them."""
    found = differences(once, contents(root))
    return [text for text in found if (text.startswith("differs") and not _is_of_a_round(root, text)) or ".tmp" in text]


def _is_of_a_round(root: Path, text: str) -> bool:
    """Whether the file that differs is a graph, whole: it is written after each round with what is known by then."""
    file = root / text.removeprefix("differs: ")
    return file.name == graph.FILE and isinstance(graph.load_graph(file.parent), im.MinimaGraph)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], faults))
