"""Commands that are given again with the same seed: equal bytes, but for what shows seconds.

    python -m tests.long.equal COUNT [COMMAND ...]         # COUNT more runs of each command

Each run is in an empty folder, in a process of its own. What may differ is in ``record.json``, in pages, and in a
column of tables.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.long.watched import Tally, anew, commands, contents, differences, forked, main, nothing, wait


def again(name: str, count: int, given: Path, root: Path, r: random.Random) -> Tally:
    """So many more runs of one command."""
    words, tally = commands(given, root)[name], Tally()
    anew(root)
    first = wait(*forked(words, root, nothing))
    once = contents(root)
    if first.code not in {0, 1} or not once:
        tally.found[f"exit code {first.code}: {first.said[-300:]}"] += 1
        return tally
    while tally.ends < count:
        anew(root)
        ended = wait(*forked(words, root, nothing))
        tally.ends += 1
        if ended.code != first.code:
            tally.found[f"exit code {ended.code}, not {first.code}: {ended.said[-300:]}"] += 1
        tally.found.update(differences(once, contents(root)))
    return tally


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], again))
