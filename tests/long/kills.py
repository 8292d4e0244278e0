"""Commands that are ended at random moments and given again until they end by themselves: equal bytes, no litter.

    python -m tests.long.kills COUNT [COMMAND ...]         # COUNT kills per command; seed 0, or SEED=n

Every command is run once and left alone. Then, in an empty folder, it is begun again and again: a third of the times it
is killed (SIGKILL) at a random call that opens, renames or removes a file of the folder; a third of the times it gets
SIGKILL, SIGTERM, SIGHUP or SIGINT at a random moment; else it is left to end. Then its exit code and every file must be
those of the first run, but for what shows seconds: ``record.json``, pages, and a column of tables. What is left in the
folder of temporary files is counted too.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

from tests.long.watched import Alone, Event, Tally, anew, commands, forked, main, nothing, wait

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
INTERRUPTED = 130


def kills(name: str, count: int, given: Path, root: Path, r: random.Random) -> Tally:
    """So many ends of one command before its time."""
    words, tally = commands(given, root)[name], Tally()
    alone = Alone.run(words, root, tally)
    anew(root)
    while alone and tally.hindered < count:
        how = r.choice(("event", "moment", "not at all"))
        event = _dies_at(r.randint(1, alone.ended.events)) if how == "event" else nothing
        moment = r.uniform(0, 1.1 * alone.seconds) if how == "moment" else None
        ended = wait(*forked(words, root, event), moment, r.choice(SIGNALS))
        if ended.code is None or ended.code == INTERRUPTED:
            tally.hindered += 1
            continue
        alone.count(ended, root, tally)
        anew(root)
    return tally


def _dies_at(number: int) -> Event:
    def event(count: int, name: str, mode: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return event


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], kills))
