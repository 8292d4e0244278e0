"""The picture of docs/curves.md: the largest loss on a trained curve against what it cost.

``python benchmarks/curve_pareto.py OUTPUT ... [--out docs/curves-pareto.png]``: files of what ``curves.py`` printed, at
several numbers of epochs, with the published codes in the same runs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

ROW = re.compile(r"  (.+): \d+ gradients.*, at most ([\d.e-]+)(?: \(ends ([\d.e-]+)\))?, ([\d.]+) s")


def main() -> None:
    files, option, out = " ".join(sys.argv[1:]).partition("--out")
    found: dict[str, list[tuple[float, float]]] = {}
    end = 0.0
    for name, top, ends, seconds in (m.groups() for f in files.split() for m in ROW.finditer(Path(f).read_text())):
        found.setdefault(name, []).append((float(seconds), float(top)))
        end = max(end, float(ends or 0))
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in found.items():
        x, y = zip(*sorted(points), strict=True)
        axes.loglog(x, y, "--x" if "code" in name else "-o", label=name, markersize=5)
    axes.axhline(end, color="grey", linewidth=0.8, linestyle=":", label="the larger end")
    axes.set(xlabel="processor seconds, one thread", ylabel="largest training loss on the path")
    axes.set_xticks((marks := (10, 20, 50, 100, 200, 500, 1000)), list(map(str, marks)), minor=False)
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(fontsize=7, loc="outside lower center", ncols=2)
    figure.savefig(out.strip() if option else "docs/curves-pareto.png", dpi=100)


if __name__ == "__main__":
    main()
