"""Modules drawn at random: every number against the plain loop.

    python -m tests.long.numbers FIRST COUNT        # seeds FIRST to FIRST + COUNT - 1

Losses, error rates, losses of batches, a profile of the line between two points and its barriers; told is each module
on which one of them differs by more than 1e-6 (float32: 2e-5, sums in another order), and how many there were.
"""

from __future__ import annotations

import sys
import time
import traceback

import torch

from tests.generated import draw
from tests.laws.test_generated_modules import as_the_loop


def main() -> None:
    torch.set_num_threads(1)
    first, count = map(int, sys.argv[1:3])
    found, begin = 0, time.process_time()
    for seed in range(first, first + count):
        case = draw(seed)
        try:
            as_the_loop(case, case.params(2 * seed + 1), case.params(2 * seed + 2))
        except Exception:
            found += 1
            print(f"seed {seed}: {traceback.format_exc(limit=-2)}", flush=True)
        if (seed - first + 1) % 500 == 0:
            print(f"{seed - first + 1} modules, {found} differ, {time.process_time() - begin:.0f} s", flush=True)
    print(f"{count} modules, {found} differ, {time.process_time() - begin:.0f} processor seconds")


if __name__ == "__main__":
    main()
