"""Dynamic String Sampling (Freeman and Bruna 2017, Algorithm 1): a string of trained beads below a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isthmus.checks import check_choices, check_whole
from isthmus.connectors.base import About, Connection, Connector, Task
from isthmus.connectors.strings.beads import check_recipe
from isthmus.connectors.strings.search import StringSearch
from isthmus.connectors.strings.threshold import ThresholdAsked
from isthmus.errors import InputError
from isthmus.kinds import check_fields
from isthmus.training.fit import Recipe


@dataclass(frozen=True)
class StringSampling(Connector):
    """Algorithm 1 of Freeman and Bruna 2017, corrected: beads are put where the loss is high, and trained down.

    A segment between two neighbours on which the `quantity` ("loss", "error", "perplexity"; on the training objective
    or, with ``on="test"``, on the `test` set given to ``connect``) exceeds `threshold` gets a bead at its largest
    sample (``position="maximum"``, kept off the ends) or its middle ("half"). The bead is trained on the objective's
    loss until the quantity is at most alpha * threshold (a bead that fails starts again with noise, `attempts` times in
    all), and both halves are looked at again. A segment counts as below the threshold when `points` equidistant samples
    are, and none of its intervals is estimated to rise above it; with ``certify=True`` also when ``isthmus.certify``
    proves it, within `effort` bounds over sub-intervals. With `always`, the straight line gets a bead even where it is
    below, as in the program of the paper's authors, whose strings have one bead at least.

    Instead of a `threshold`, `excess` says how far it lies above the larger end. Without either it is 1.1 times the
    larger end, between ends without errors an error rate of 0.01 (or one example). Language models have large losses
    that differ little, so their straight line may be below that: ``stats["notes"]`` then says so, with a harder task.

    The work list is taken breadth first (all open segments of a depth, their beads `batched` into one stacked problem
    where that is faster) or depth first; the string is the same. It ends with ``CONSTRUCTED``; ``BEAD_FAILED``;
    ``SUSPECTED_DISCONNECTION``, when on a chain of halved segments the excess over the threshold has fallen by less
    than a fifth in `patience` generations; ``BUDGET_EXHAUSTED``, at `depth` generations or `budget` gradient steps in
    all (``recipe.steps`` for one training). None but the first proves anything.

    `alpha`: a bead is trained to this share of the threshold. `order`: "breadth" or "depth".

    When to use: on any module, when you want to know from which loss on two solutions are connected, and how much
    longer than the straight line the way between them is. Cost: some hundred gradient steps per bead, `points`
    passes over the data per segment; the beads grow like a power of 1 / threshold.
    """

    threshold: float | None = None
    quantity: Literal["loss", "error", "perplexity"] = "loss"
    on: Literal["train", "test"] = "train"
    position: Literal["maximum", "half"] = "maximum"
    alpha: float = 0.9
    always: bool = False
    order: Literal["breadth", "depth"] = "breadth"
    depth: int = 10
    patience: int = 5
    budget: int = 100_000
    points: int = 21
    certify: bool = False
    effort: int = 100
    recipe: Recipe = Recipe(steps=2000)  # noqa: RUF009 - frozen
    attempts: int = 3
    batched: bool | None = None
    excess: float | None = None

    about = About(
        makes="straight segments between trained beads, each below a threshold",
        reference="Freeman & Bruna 2017, Algorithm 1",
        needs="any module",
        cost="a short training per bead",
        convex=False,
        statistics="interpolate",
        grows=("budget", "depth"),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        ThresholdAsked.of(self)
        check_choices(self)
        if not 0 < self.alpha <= 1:
            raise InputError("alpha", expected="a number in (0, 1]", got=self.alpha)
        check_whole(self, "depth", "patience", "budget", "effort", "attempts")
        if self.certify and self.quantity == "error":
            raise InputError("certify", expected="a threshold on the loss or the perplexity", got="quantity='error'")
        check_recipe(self.recipe)

    @property
    def judged(self) -> bool:
        """Whether test data judge the path."""
        return self.on == "test"

    def find(self, task: Task) -> Connection:
        """The work list of the algorithm, to its end."""
        work = StringSearch(self, task)
        while work.step():
            pass
        return work.connection()
