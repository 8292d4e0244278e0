"""Networks that stay in their files while they are checked and merged: the same bytes, and bounded memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import isthmus as im
from isthmus.cli import check as module
from isthmus.cli import run_app
from isthmus.params import distance, dot, equal, in_parts, mean
from isthmus.paths.on_demand import Between, OnDemand
from tests.problems import perceptron, random_params

SPEC = ["--model", "mlp:64-6-10", "--examples", "60", "-q"]


@pytest.fixture
def files(tmp_path):
    net = perceptron([64, 6, 10])
    base = random_params(net, 1, torch.float32)
    step = random_params(net, 5, torch.float32)
    networks = {"base": base, "near": {k: v + 1e-3 * step[k] for k, v in base.items()}, "far": step}
    # one layer is that of the base: the line is measured by what changes
    networks["head"] = base | {"2.weight": networks["near"]["2.weight"]}
    for name, params in networks.items():
        im.save_params(params, tmp_path / f"{name}.safetensors")
    return tmp_path


def both(monkeypatch, tmp_path, words):
    """Exit codes and files of a command with networks in memory, and with networks that stay in their files."""
    found = []
    for k, large in enumerate((1 << 60, 0)):
        monkeypatch.setattr(module, "LARGE", large)
        out = tmp_path / "out" / words[0]
        code = run_app([*words, "--out", str(out)])
        found.append((code, {f.name: f.read_bytes() for f in sorted(out.iterdir())}))
        out.rename(tmp_path / "out" / f"{words[0]}-{k}-{len(list((tmp_path / 'out').iterdir()))}")
    return found


@pytest.mark.parametrize(("other", "code"), [("near", 0), ("head", 0), ("far", 1)])
def test_check_gives_the_same_bytes(files, monkeypatch, tmp_path, other, code):
    a, b, base = (str(files / f"{name}.safetensors") for name in ("base", other, "near"))
    level = ["--level", "1.1x" if code == 0 else "0.1"]
    memory, disk = both(monkeypatch, tmp_path, ["check", a, b, "--base", base, *level, *SPEC])
    assert memory[0] == disk[0] == code
    assert memory[1] == disk[1]


@pytest.mark.parametrize("method", ["average", "slerp", "ties", "task", "aligned-average"])
def test_merge_gives_the_same_bytes(files, monkeypatch, tmp_path, method):
    a, b, base = (str(files / f"{name}.safetensors") for name in ("base", "near", "head"))
    more = ["--base", base] if method in ("ties", "task") else []
    memory, disk = both(monkeypatch, tmp_path, ["merge", a, b, "--method", method, *more, *SPEC, "--anyway"])
    assert memory == disk


def test_a_line_between_networks_that_are_read_on_demand():
    a, b = ({"w": torch.full((3,), v), "n": torch.tensor(2)} for v in (0.0, 4.0))
    asked = []
    kept = OnDemand(a, lambda name: (asked.append(name), a[name])[1])
    line = im.Path.through([kept, b])
    assert isinstance(line.segments[0], Between)
    assert not asked  # nothing is read before a point is asked for
    straight = im.Path.through([a, b])
    assert all(equal(line.at(t), straight.at(t)) for t in (0.0, 0.3, 1.0))
    assert (line.length, "w" in kept, "v" in kept, len(kept)) == (straight.length, True, False, 2)
    assert equal(line.reversed().at(0.25), straight.at(0.75))
    with pytest.raises(KeyError):
        kept["v"]


def test_large_tensors_are_widened_in_parts(monkeypatch):
    g = torch.Generator().manual_seed(0)
    v, w = (torch.randn(7, 11, generator=g) for _ in range(2))
    whole = distance({"w": v}, {"w": w}), dot({"w": v}, {"w": w}), mean([{"w": v}, {"w": w}])["w"]
    monkeypatch.setattr("isthmus.params._PART", 10)
    assert [len(part) for part, _ in in_parts(v, w)] == [10] * 7 + [7]
    assert all(p is q for p, q in in_parts(v, v))
    assert len(list(in_parts(v.T, w.T))) == 1  # what lies otherwise is taken whole
    again = distance({"w": v}, {"w": w}), dot({"w": v}, {"w": w}), mean([{"w": v}, {"w": w}])["w"]
    assert again[:2] == pytest.approx(whole[:2], rel=1e-12)
    assert torch.equal(again[2], whole[2])


CODE = """
import json, sys
from pathlib import Path
from isthmus.cli import run_app

def peak():
    held = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(held.split()[0]) * 1024

found = []
for words in json.loads(sys.argv[1]):
    code = run_app(words)
    found.append((code, peak()))
print("FOUND", json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_check_takes_the_memory_of_two_networks(tmp_path):
    sizes = {}
    for name, spec, widths in (("small", "mlp:64-6x3-10", [6] * 3), ("large", "mlp:64-2000x6-10", [2000] * 6)):
        g = torch.Generator().manual_seed(0)
        net = perceptron([64, *widths, 10])
        params = {k: torch.randn(v.shape, generator=g) / max(v.shape) ** 0.5 for k, v in net.state_dict().items()}
        moved = {k: v + 1e-3 / v.numel() ** 0.5 * torch.randn(v.shape, generator=g) for k, v in params.items()}
        for other, end in (("a", params), ("b", moved)):
            im.save_params(end, tmp_path / f"{name}-{other}.safetensors", {"model": spec, "data": "digits"})
        sizes[name] = sum(v.nbytes for v in params.values())
    words = [
        ["check", *(str(tmp_path / f"{name}-{other}.safetensors") for other in "ab"), "--examples", "10", "-q",
         "--out", str(tmp_path / f"{name}-out")]
        for name in ("small", "large")
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(words)], capture_output=True, text=True, env=environment, check=True
    )
    (_, before), (code, after) = json.loads(done.stdout.split("FOUND")[1])
    assert code == 0
    assert sizes["large"] > module.LARGE
    # the module and random weights while it is looked at; then one network and the average
    assert after - before <= 2.7 * sizes["large"]
