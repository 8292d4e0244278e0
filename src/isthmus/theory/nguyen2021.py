"""Theorem 4.1 of Nguyen, Brechet, Mondelli 2021 and its corollaries on a pair of networks."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

from torch import Tensor

from isthmus.errors import UnsupportedError
from isthmus.premises.memorisation import has_output_bias, is_perceptron
from isthmus.premises.separability import Separability
from isthmus.stability.noise.jacobian import Layered
from isthmus.structure.activations import monotonic
from isthmus.theory.kuditipudi2019 import convex_rows
from isthmus.theory.table import MeasuredPair, Row, conclusion

PAPER = "Nguyen, Brechet, Mondelli 2021"


def theorem_4_1(pair: MeasuredPair) -> list[Row]:
    """The largest of the ends' losses and of those of optimised subnetworks."""
    name = f"{PAPER}, Theorem 4.1"
    rows = convex_rows(pair, name)
    for e, end in enumerate("ab"):
        q = pair.bounds(e)
        for row in q.layers:
            note = f"at most; best of {len(row.losses)} trained" + ("; limits the bound" * (row.layer == q.limited_by))
            holds = isfinite(row.loss)
            rows.append(
                Row(
                    name,
                    f"loss Q_{row.layer} of the subnetwork",
                    end,
                    row.loss,
                    "finite; it enters the bound",
                    holds,
                    None,
                    note,
                )
            )
    # the hub of either end serves both: Q_0 depends on an end only through |I_l|
    hub = min(pair.bounds(e).at(0).loss for e in (0, 1))
    rest = [row.loss for e in (0, 1) for row in pair.bounds(e).layers if row.layer]
    return [*rows, conclusion(name, rows, max(pair.top, hub, *rest), "path: Subnetwork()")]


def corollary_4_2(pair: MeasuredPair) -> list[Row]:
    """Dropout stability implies the condition of Theorem 4.1."""
    name = f"{PAPER}, Corollary 4.2"
    rows = convex_rows(pair, name)
    for e, end in enumerate("ab"):
        epsilon = pair.dropout(e).epsilon
        rows.append(
            Row(name, "dropout stability epsilon", end, epsilon, "finite; it enters the bound", isfinite(epsilon))
        )
    epsilon = max(0.0, *(pair.dropout(e).epsilon for e in (0, 1)))
    return [
        *rows,
        conclusion(name, rows, pair.top + epsilon, "path: Subnetwork(subsets='own', inner=Trained(init='dropout'))"),
    ]


def corollary_4_3(pair: MeasuredPair) -> list[Row]:
    """Memorising subnetworks: wide layers L-2 and L-1."""
    name = f"{PAPER}, Corollary 4.3"
    rows, chain, L = convex_rows(pair, name), pair.chain, pair.chain.L
    if L < 3:
        raise UnsupportedError("the network", "Corollary 4.3 speaks of two hidden layers or more")
    rows += [_perceptron(pair, name), _relu(pair, name), _targets(pair, name)]
    found = [pair.memorisation(e) for e in (0, 1)]
    one = found[0]
    allowed = min(m.allowed for m in found)
    widths = f"layers {L - 2} and {L - 1} of {chain.widths[L - 2]} and {chain.widths[L - 1]} units"
    rows.append(Row(name, "(A1) examples that the widths allow", "", allowed, f">= N = {one.examples}",
                    allowed >= one.examples, None, widths))  # fmt: skip
    equal = one.features[0].coinciding
    rows.append(Row(name, "inputs that equal an earlier one", "", equal, "0", equal == 0))
    epsilon = 0.0
    for e, end in enumerate("ab"):
        m, q = found[e], pair.bounds(e)
        excess = max(0.0, q.at(L - 1).loss - q.reference)  # neither has the penalty, which the theorem does not know
        epsilon = max(epsilon, excess)
        note = f"|I_{L - 1}| = {len(m.held[L - 1])}; a convex problem"
        rows.append(
            Row(name, "(A1-b) epsilon", end, excess, "finite; it enters the bound", isfinite(excess), None, note)
        )
        p = m.features[L - 2]
        note = f"points on one hyperplane, {p.dimension} features of layer {L - 2}; {p.subsets} random subsets tried"
        rows.append(
            Row(
                name, "(A2) generic position", end, p.most_on_hyperplane, f"<= {p.dimension}", p.generic, None, note,
                vacuous=f"N = {p.points} <= d = {p.dimension}" * (p.points <= p.dimension),
            )
        )  # fmt: skip
        for l in range(1, L - 2):
            equal = m.features[l].coinciding
            rows.append(Row(name, f"(A3) equal features in layer {l}", end, equal, "0", equal == 0))
    bound = conclusion(name, rows, pair.top + epsilon, "path: Subnetwork(inner=Memorised())")
    room = min(min(m.room.values()) for m in found)
    note = f"{room} examples in general position fit the construction of this library: Subnetwork(inner=Memorised())"
    return [*rows, replace(bound, note=note)]


def _separable_layers(pair: MeasuredPair, name: str, e: int) -> list[Row]:
    L = pair.chain.L
    each = pair.separability(e, "each", range(L))
    failing = [l for l in range(L) if each[l].separable is not True]
    whole = pair.separability(e, "each", [l for l in failing if l], whole=True)
    argmax = pair.separability(e, "argmax", failing)
    return [_separable(name, l, "ab"[e], each[l], whole.get(l, each[l]), argmax.get(l)) for l in range(L)]


def corollary_4_4(pair: MeasuredPair) -> list[Row]:
    """Linearly separable features."""
    name = f"{PAPER}, Corollary 4.4"
    rows, chain, L = convex_rows(pair, name), pair.chain, pair.chain.L
    n, y = chain.widths, pair.objective.data[1]
    if y.is_floating_point() or y.dim() != 1:
        raise UnsupportedError("labels", "Corollary 4.4 is about one class per example")
    entropy = pair.objective.named_loss == "cross_entropy"
    rows.append(Row(name, "cross-entropy loss", needed="infimum 0 on separable data", holds=entropy or None))
    rows.append(_perceptron(pair, name))
    length = min(monotonic(chain, l) for l in range(1, L))
    rows.append(Row(name, "interval on which the activation is strictly monotonic", "", length, "> 0", length > 0))
    narrow = min(n[1:L])
    rows.append(Row(name, "hidden width", "", narrow, f">= 2 n_L = {2 * n[L]}", narrow >= 2 * n[L]))
    for e in range(2):
        rows += _separable_layers(pair, name, e)
    note = "path: Subnetwork(inner=Separated()), for which it is enough that own classes have the largest scores"
    if not has_output_bias(chain):
        note += "; layer L-1 was tested with hyperplanes through the origin, as the output layer has no bias"
    return [*rows, conclusion(name, rows, pair.top, note)]


def _separable(
    name: str, l: int, end: str, set_: Separability, whole: Separability, argmax: Separability | None
) -> Row:
    """The row of one layer: a set I_l that is not separable leaves the question open unless the whole layer is not."""
    row = Row(name, f"layer {l}: hyperplanes around each class", end, set_.margin, "margin > 0", set_.separable)
    if argmax is None:
        return row
    if whole.separable is False:
        note = f"all units: class {whole.refuted} has no margin above {whole.residual:.1g} (dual vector)"
    else:
        row = replace(row, holds=None)
        note = f"a random I_{l}: " + ("undecided" if set_.separable is None else "no; other sets may do")
    scores = {True: "yes", False: "no", None: "undecided"}[argmax.separable]
    return replace(row, note=f"{note}; by largest scores: {scores}")


def _perceptron(pair: MeasuredPair, name: str) -> Row:
    plain = is_perceptron(pair.chain)
    note = "" if plain else "stated for perceptrons; features of convolutional layers are measured flattened"
    return Row(name, "linear layers", needed="perceptron", holds=plain, note=note)


def _relu(pair: MeasuredPair, name: str) -> Row:
    try:
        Layered.of(pair.chain, pair.params[0])
    except UnsupportedError as e:
        return Row(name, "ReLU", needed="ReLU", holds=False, note=str(e))
    return Row(name, "ReLU", needed="ReLU", holds=True)


def _targets(pair: MeasuredPair, name: str) -> Row:
    y: Tensor = pair.objective.data[1]
    if not y.is_floating_point():
        return Row(name, "targets", "", 1.0, "in [-1, 1]", True, None, "one-hot class labels")
    largest = float(y.abs().max())
    infimum = pair.objective.named_loss == "mse" or None
    note = "" if infimum else "whether interpolation reaches the loss's infimum is not known"
    return Row(name, "targets", "", largest, "in [-1, 1]", largest <= 1 and infimum, None, note)
