"""Level curves come back bit for bit, or not at all."""

import pytest
import torch

from isthmus.connectors.base import Connection, Outcome
from isthmus.errors import FileError
from isthmus.paths import Curve, LevelCurve, LevelLayer, Path
from isthmus.storage import load_connection, read_header, save
from tests.storage.connections import STATS, connection, forge, same


def level_connection():
    """A line, a level curve, a part of it walked backwards."""
    g = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    a, b = ({"u": draw(6, 4), "c": draw(6), "w": draw(3, 6), "rest": torch.ones(2)} for _ in range(2))
    curve = LevelCurve(a, b, draw(5, 4), (LevelLayer("u", "c", 0.1), LevelLayer("w", None)))
    part = curve.split(0.25)[1].reversed()
    first = {**a, "rest": torch.zeros(2)}
    return Connection(Path((Curve((first, a)), curve, part)), part.end, Outcome.CONSTRUCTED, STATS)


def test_level_curves_come_back_bit_for_bit_in_version_2(tmp_path):
    before = level_connection()
    save(before, tmp_path / "p")
    after = load_connection(tmp_path / "p")
    assert same(before, after)
    assert read_header(tmp_path / "p")["version"] == 2
    one, two = after.path.segments[1:]
    assert isinstance(one, LevelCurve)
    assert isinstance(two, LevelCurve)
    own = before.path.segments[1]
    assert isinstance(own, LevelCurve)
    assert (two.lo, two.hi, two.layers) == (1.0, 0.25, own.layers)
    assert torch.equal(one.x, own.x)
    assert one.x is two.x  # written once
    once = (tmp_path / "p").read_bytes()
    save(after, tmp_path / "p")
    assert (tmp_path / "p").read_bytes() == once
    save(connection(), tmp_path / "q")
    assert read_header(tmp_path / "q")["version"] == 1  # what an older reader can read is written for it


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.update(layers=[["u", "c", -1.0], ["w", None, 1.0]]), "slope"),
        (lambda s: s.update(layers=[["u", "c", 0.1], ["v", None, 1.0]]), "distinct names"),
        (lambda s: s.update(span=[0.5, 0.5]), "hi"),
        (lambda s: s.update(span=[0.0]), "ValueError"),
        (lambda s: s.update(x=10_000), "tensors that are not there"),
        (lambda s: s.update(x="0"), "expected a number"),
        (lambda s: s.update(span=[10**400, 0]), "manifest cannot be read"),
        (lambda s: s.update(x=-(10**400)), "manifest cannot be read"),
        (lambda s: s.pop("layers"), "KeyError"),
        (lambda s: s["control"].append(0), "ValueError"),
    ],
)
def test_level_curves_that_cannot_be_are_refused(tmp_path, change, why):
    save(level_connection(), tmp_path / "p")
    forge(tmp_path / "p", lambda m, t: change(m["segments"][1]), version=2)
    with pytest.raises(FileError, match=why):
        load_connection(tmp_path / "p")
