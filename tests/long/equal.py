"""Commands that are given again with the same seed: equal bytes, but for what shows seconds.

    python -m tests.long.equal COUNT [COMMAND ...]         # COUNT more runs of each command

Each run is in an empty folder, in a process of its own. What may differ is in ``record.json``, in pages, and in a
column of tables.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.long.watched import Alone, Tally, anew, commands, forked, main, nothing, wait


def again(name: str, count: int, given: Path, root: Path, r: random.Random) -> Tally:
    """So many more runs of one command."""
    words, tally = commands(given, root)[name], Tally()
    alone = Alone.run(words, root, tally)
    while alone and tally.ends < count:
        anew(root)
        alone.count(wait(*forked(words, root, nothing)), root, tally)
    return tally


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], again))
