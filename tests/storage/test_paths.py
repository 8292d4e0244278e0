"""Saved connections come back bit for bit, or not at all."""

import math
import os
import random
import signal
import struct
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.connectors.base import Connection, Outcome
from isthmus.errors import FileError, InputError, UnsupportedError
from isthmus.paths import Curve, Path, Segment
from isthmus.storage import load_connection, read_header, read_tensors, save, save_params, save_tensors
from isthmus.storage import paths as saved
from tests.storage.connections import STATS, connection, forge, params, same


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_connection_comes_back_bit_for_bit(tmp_path, dtype, outcome):
    file = tmp_path / "path.safetensors"
    before = connection(dtype=dtype, outcome=outcome)
    save(before, file)
    after = load_connection(file)
    assert same(before, after)
    assert after.stats == STATS
    once = file.read_bytes()
    save(after, file)
    assert file.read_bytes() == once
    assert [p.name for p in tmp_path.iterdir()] == ["path.safetensors"]


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    controls=st.lists(st.integers(2, 4), min_size=1, max_size=4),
    names=st.lists(st.text(), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 99),
)
def test_any_path_of_bezier_curves_comes_back(tmp_path_factory, shape, controls, names, seed):
    g = torch.Generator().manual_seed(seed)
    # few values: many tensors are equal
    points = [
        {n: torch.randint(-1, 2, shape, generator=g).float() * torch.tensor(-0.0 if seed % 2 else 1.0) for n in names}
        for _ in range(sum(controls))
    ]
    segments, at = [], 0
    for count in controls:
        segments.append(Curve((segments[-1].end if segments else points[at], *points[at + 1 : at + count])))
        at += count - 1
    before = Connection(Path(tuple(segments)), segments[-1].end, Outcome.CONSTRUCTED, {})
    file = tmp_path_factory.mktemp("path") / "p"
    save(before, file)
    assert same(before, load_connection(file))


def test_each_tensor_is_stored_once_and_shared_again_after_loading(tmp_path):
    big = [torch.randn(100, 100, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    points = [{"w": big[i], "frozen": big[2], "b": torch.zeros(1)} for i in (0, 1, 0)]
    path = Path((Curve((points[0], points[1])), Curve((points[1], points[2]))))
    # equal by content, not by object
    target = {k: v.clone() for k, v in points[2].items()}
    save(Connection(path, target, Outcome.CONSTRUCTED), tmp_path / "p")
    tensors, _ = read_tensors(tmp_path / "p")
    assert len(tensors) == 4
    assert (tmp_path / "p").stat().st_size < 3 * big[0].nbytes + 3000
    after = load_connection(tmp_path / "p")
    knots = after.path.knots
    assert all(knots[i]["frozen"] is knots[0]["frozen"] is after.target["frozen"] for i in range(3))
    assert knots[2]["w"] is knots[0]["w"] is after.target["w"]
    assert knots[1]["w"] is not knots[0]["w"]


def test_equal_tensors_under_two_names_are_stored_once_and_share_no_memory_after_loading(tmp_path):
    zeros = torch.zeros(3)
    point = {"a": zeros, "b": zeros, "c": torch.zeros(3)}
    path = Path.through([point, {**point, "a": torch.ones(3)}])
    save(Connection(path, path.end, Outcome.CONSTRUCTED), tmp_path / "p")
    assert len(read_tensors(tmp_path / "p")[0]) == 2
    start = load_connection(tmp_path / "p").path.start
    assert len({v.data_ptr() for v in start.values()}) == 3


def test_the_name_that_success_had_in_older_files_is_read(tmp_path):
    before = connection()
    save(before, tmp_path / "p")
    forge(tmp_path / "p", lambda manifest, tensors: manifest.update(outcome="CONNECTED"))
    assert read_header(tmp_path / "p")["outcome"] == "CONNECTED"
    after = load_connection(tmp_path / "p")
    assert same(before, after)
    assert after.outcome is Outcome.CONSTRUCTED is Outcome.CONNECTED
    assert after.outcome.ok


def test_the_header_is_read_without_the_tensors(tmp_path):
    file = tmp_path / "p"
    save(connection(), file)
    header = read_header(file)
    assert header["stats"] == STATS
    assert header["outcome"] == "CONSTRUCTED"
    assert header["names"] == list(params(0))
    assert [s["kind"] for s in header["segments"]] == ["curve"] * 3
    assert [len(s["control"]) for s in header["segments"]] == [2, 4, 2]
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert read_header(file) == header
    with pytest.raises(FileError, match="its tensors do not match their digest; copy it again"):
        load_connection(file)


def test_stats_keep_nan_and_must_be_json(tmp_path):
    file = tmp_path / "p"
    path = connection().path
    save(Connection(path, path.end, Outcome.CONSTRUCTED, {"loss": [math.nan, math.inf], "pair": (1, 2)}), file)
    stats = load_connection(file).stats
    assert math.isnan(stats["loss"][0])
    assert stats["loss"][1] == math.inf
    assert stats["pair"] == [1, 2]
    before = file.read_bytes()
    for bad, where in [({"a": {3}}, r"stats\['a'\]"), ({"a": {3: 4}}, r"stats\['a'\]: expected keys that are strings")]:
        with pytest.raises(InputError, match=where):
            save(Connection(path, path.end, Outcome.CONSTRUCTED, bad), file)
    assert file.read_bytes() == before


class Circle(Segment):
    """A segment of a kind that the format does not know."""

    @property
    def start(self):
        return params(0)

    @property
    def end(self):
        return params(0)

    @property
    def length(self):
        return 0.0

    def at(self, t):
        return params(0)

    def reversed(self):
        return self

    def split(self, t):
        return self, self


def test_what_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    file = tmp_path / "path" / "p"
    file.parent.mkdir()
    whole = connection()
    with pytest.raises(UnsupportedError, match="segment 0: a Circle has no form in the file format"):
        save(Connection(Path((Circle(),)), params(0), Outcome.CONSTRUCTED), file)
    with pytest.raises(InputError, match=r"target: expected the key\(s\)"):
        save(Connection(whole.path, {}, Outcome.CONSTRUCTED), file)
    with pytest.raises(FileError, match=r"path/p: has a header of .* bytes"):
        save(Connection(whole.path, whole.target, Outcome.CONSTRUCTED, {"log": "x" * 20_000_000}), file)
    monkeypatch.setattr(saved, "_CELLS", 39)  # it has 8 control points of 5 parameters
    with pytest.raises(FileError, match="the path has 40 control points times parameters, a file may have 39; save"):
        save(whole, file)
    assert list(file.parent.iterdir()) == []


def test_files_of_another_kind_are_named(tmp_path):
    file = tmp_path / "p"
    others = [
        (lambda: save_params(params(0), file), "a safetensors file, but not a saved connection; read it with load_par"),
        (lambda: torch.save(params(0), file), "a zip archive .* read it with load_params"),
        (lambda: file.write_text('{"a": 1, "b": 2}'), "is JSON text, not a saved connection"),
        (lambda: file.write_bytes(b""), "is an empty file"),
        (lambda: file.write_bytes(b"ab"), "is a file of 2 bytes"),
        (lambda: file.write_text("<html>not found</html>"), "is an HTML or XML page"),
        (lambda: save_tensors({}, file, {"isthmus": '{"format": "x"}'}), "is 'x', not a saved connection"),
        (lambda: save_tensors({}, file, {"isthmus": "["}), "its manifest cannot be read"),
        (lambda: save_tensors({}, file, {"isthmus": "[" * 100_000}), "its manifest cannot be read"),
    ]
    for write, message in others:
        write()
        for read in (load_connection, read_header):
            with pytest.raises(FileError, match=message):
                read(file)
    for name, message in [("missing", "there is no such file"), (".", "is a folder, not a saved connection")]:
        with pytest.raises(FileError, match=message):
            load_connection(tmp_path / name)


FORGERIES = {
    "kind": (lambda m, t: m["segments"][1].update(kind="helix"), "segment 1 is of the kind 'helix', .* newer isthmus"),
    "outcome": (lambda m, t: m.update(outcome="PERFECT"), "does not describe a path"),
    "no target": (lambda m, t: m.pop("target"), "does not describe a path"),
    "negative point": (lambda m, t: m.update(target=-1), "a number of a point or tensor, got -1"),
    "true as point": (lambda m, t: m.update(target=True), "a number of a point or tensor, got True"),
    "point beyond": (lambda m, t: m.update(target=99), "does not describe a path"),
    "tensor beyond": (lambda m, t: m["points"][0].__setitem__(0, 99), "does not describe a path"),
    "short row": (lambda m, t: m["points"][0].pop(), "does not describe a path"),
    "gap": (lambda m, t: m["segments"].pop(1), "a gap of length"),
    "other shape": (lambda m, t: m["points"][0].reverse(), "does not describe a path"),
    "no segments": (lambda m, t: m.update(segments=[]), "at least one segment"),
    "one control point": (lambda m, t: m["segments"][0]["control"].pop(), "at least 2 control points"),
    "stats": (lambda m, t: m.update(stats=[1]), "stats are not a dictionary"),
    "names": (lambda m, t: m.update(names=3), "does not describe a path"),
    "twice the name": (lambda m, t: m["names"].__setitem__(1, m["names"][0]), "names are not distinct strings"),
    "stray tensor": (lambda m, t: t.update(extra=torch.ones(1)), "tensors that no point uses"),
    "segments without end": (
        lambda m, t: m.update(segments=[{"kind": "curve", "control": [0, 1] * 20}] * 30_000),
        "control points times parameters",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_manifests_are_refused_quickly(tmp_path, name):
    change, message = FORGERIES[name]
    file = tmp_path / "p"
    save(connection(), file)
    forge(file, change)
    start = time.process_time()
    with pytest.raises(FileError, match=message) as error:
        load_connection(file)
    assert time.process_time() - start < 3
    assert "\n" not in str(error.value)


def test_a_newer_version_of_the_format_is_refused_with_advice(tmp_path):
    save(connection(), tmp_path / "p")
    forge(tmp_path / "p", lambda m, t: None, version=3)
    with pytest.raises(FileError, match=r"is in version 3 of the format, .* versions 1 and 2; install a newer isthmus"):
        load_connection(tmp_path / "p")


def test_two_thousand_damaged_files_give_an_error_or_the_same_connection(tmp_path):
    file = tmp_path / "p"
    before = connection()
    save(before, file)
    data = file.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    rng = random.Random(0)
    refused = 0
    for i in range(2000):
        out = bytearray(data)
        # half of the faults in the header, where most of the meaning is
        at, size = rng.randrange(header if i % 2 else len(out)), rng.randint(1, 16)
        match rng.randrange(6):
            case 0 | 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at : at + size] = rng.randbytes(size)
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[at : at + size]
            case 5:
                del out[at:]
        file.write_bytes(out)
        try:
            after = load_connection(file)
        except FileError:
            refused += 1
        else:
            assert same(before, after)
    assert refused > 1500


def test_every_truncation_is_refused(tmp_path):
    file = tmp_path / "p"
    save(connection(), file)
    data = file.read_bytes()
    for length in range(0, len(data), 13):
        file.write_bytes(data[:length])
        with pytest.raises(FileError):
            load_connection(file)


def test_killing_the_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    file = tmp_path / "p"
    two = [connection(seed) for seed in (0, 50)]
    big = [
        Connection(c.path, {**c.target, "0.bias": c.target["0.bias"]}, c.outcome, {"log": "x" * 300_000}) for c in two
    ]
    save(big[0], file)
    rng = random.Random(0)
    left = kills = 0
    while kills < 20 or (left == 0 and kills < 1000):  # beside other work a child may not have begun
        kills += 1
        child = os.fork()
        if child == 0:
            while True:
                for c in big:
                    save(c, file)
        time.sleep(rng.uniform(0.005, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left += sum(p.name.endswith(".tmp") for p in tmp_path.iterdir())
        after = load_connection(file)
        assert any(same(after, c) for c in big)
    assert left > 0  # some kills hit a write
    save(big[0], file)  # which sweeps what the dead left
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
