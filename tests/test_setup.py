"""What an installation must and must not contain."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import import_module
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
import torch
from radon.complexity import cc_visit

import isthmus as im
from isthmus.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]


def test_no_torchvision_and_no_cuda_came_with_the_dependencies():
    """Anything that reaches torchvision replaces the CPU build of torch by gigabytes of CUDA."""
    names = {d.metadata["Name"].lower() for d in distributions()}
    assert "torchvision" not in names
    if torch.version.cuda is not None:
        pytest.skip("this environment was set up with a CUDA build of torch on purpose")
    assert not [n for n in names if n.startswith("nvidia-")]


def test_the_core_needs_four_packages():
    core = {re.split(r"[<>=!;\[ ]", r)[0] for r in requires("isthmus") or [] if "extra ==" not in r}
    assert core == {"torch", "numpy", "scipy", "safetensors"}


def test_importing_the_library_loads_no_extra():
    extras = ("matplotlib", "plotly", "typer", "rich", "pydantic", "yaml", "sklearn", "ray")
    code = f"import isthmus, sys; print([m for m in {extras} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def modules_after(code):
    run = [sys.executable, "-c", f"import sys\n{code}\nprint('loaded', *sys.modules)"]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    return set(said.rpartition("loaded")[2].split())


def test_the_library_and_the_help_of_the_command_line_start_without_torch():
    assert "torch" not in modules_after("import isthmus; isthmus.__version__")
    loaded = modules_after("from isthmus.cli import run_app; assert run_app(['--help']) == 0")
    assert "typer" in loaded
    assert not {"torch", "numpy", "yaml", "pydantic", "isthmus.api"} & loaded


def test_the_help_says_of_each_command_what_the_command_itself_says():
    for name, (file, says) in COMMANDS.items():
        module = import_module(f"isthmus.cli.{file}")
        found = module.app.info.help if name == "experiment" else getattr(module, name).__doc__
        assert found.splitlines()[0] == says


def test_a_submodule_does_not_hide_the_function_of_its_name():
    code = "import isthmus.certify, isthmus.theory, isthmus.verdict as v; im = isthmus\n"
    assert modules_after(code + "assert all(map(callable, (im.certify, im.theory, im.verdict, v)))")
    assert {"connect", "certify", "METHODS", "data", "__version__"} <= set(dir(im))
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = im.conect


def test_constraints_pin_torch_and_every_direct_dependency():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line and line[0] != "#"
    )
    assert pins["torch"] == "2.13.0"
    assert "torchvision" not in pins
    names = {re.split(r"[<>=!;\[ ]", r)[0].lower() for r in requires("isthmus") or []} - {"isthmus"}
    assert not {n for n in names if n not in {k.lower() for k in pins}}


def test_every_method_is_public_and_documented():
    for method in im.METHODS:
        assert getattr(im, method.__name__) is method
        assert method.__doc__
        assert all(len(text) > 3 for text in (method.about.makes, method.about.needs, method.about.reference))
        if method is not im.Linear:
            assert str(re.search(r"\d{4}", method.about.reference)[0]) in method.__doc__  # type: ignore[index]
        assert method.__name__ in (ROOT / "docs/how-to-choose.md").read_text()


def test_files_stay_under_400_lines():
    long = [p for p in (ROOT / "src").rglob("*.py") if len(p.read_text().splitlines()) > 400]
    assert not long


COMPLEX = """
analysis/straighten.py:straighten
analysis/subnetwork_bounds.py:subnetwork_bounds
certify/affine.py:Reading.__init__
certify/analytic.py:_measured
certify/analytic.py:_place
certify/bounds.py:_losses
certify/certificate.py:Certificate.expected
certify/certify.py:certify
certify/forms.py:contract
cli/app.py:run_app
cli/asked.py:_examples
cli/asked.py:of_checkpoints
cli/experiments.py:engine_of
connectors/connect.py:connect
connectors/deep_linear/exchange.py:_Exchange.round
connectors/deep_linear/one_layer.py:one_layer_path
connectors/narrow.py:Narrow.__post_init__
connectors/narrow.py:Narrow.find
connectors/narrow.py:read_network
connectors/strings/constrained.py:_Descent._insert
connectors/strings/constrained.py:_Descent._train
connectors/strings/constrained.py:_Descent.step
connectors/strings/search.py:Work._insert
connectors/strings/search.py:Work._rounds
connectors/strings/search.py:Work._stats
connectors/strings/threshold.py:Threshold.scan
connectors/strings/threshold.py:threshold_for
connectors/sublevel/method.py:largest_subproblem
connectors/subnetwork/choose.py:Choice.spend
connectors/subnetwork/choose.py:Choice.train
connectors/subnetwork/method.py:Subnetwork.__post_init__
connectors/subnetwork/path.py:_check
connectors/subnetwork/train.py:Training._together
connectors/subnetwork/untrained.py:_memorise
connectors/subnetwork/untrained.py:_on_a_line
connectors/two_layer_relu/compression.py:two_layer_chain
evaluate/routes.py:Penalty.along
evaluate/sample.py:adaptively
evaluate/sample.py:screened
kinds.py:_is
papers/kuditipudi2019/drawing.py:distributions
papers/kuditipudi2019/jobs.py:Subnetworks._at
papers/nguyen2019/sketches.py:survey
papers/shevchenko2020/drawing.py:falling
papers/shevchenko2020/tables.py:_excess_slope
program/batch.py:_Sizes.merged
program/export.py:_free
program/export.py:_read
program/export.py:_where
shown.py:brief
stability/dropout/pattern.py:kept_units
stability/dropout/search.py:search
stability/dropout/subsets.py:_exchange
stability/noise/jacobian.py:_cut
stability/noise/measure.py:noise_stability
structure/activations.py:activation_of
structure/algebra.py:_reduce
structure/algebra.py:contract
structure/algebra.py:elementwise
structure/axes.py:_bind
structure/axes.py:_unify_products
structure/chain.py:_factor_first
structure/chain.py:_group_between
structure/chain.py:_needed
structure/chain.py:_one_line
structure/chain.py:chain_of
structure/layers.py:_recurrent
structure/liveness.py:live_units
structure/liveness.py:merged
structure/propagation.py:Propagation.run
structure/propagation.py:Propagation.structure
structure/shapes.py:reshaped
structure/slopes.py:chain_with_slopes
structure/units.py:Structure.__post_init__
structure/units.py:Structure._check_overlap
structure/verify.py:verify
training/fit.py:_Fitting.note
training/fit.py:fit_together
"""
"""The functions that are more complex than 10 as radon counts; the list may only shrink."""

SAME_NAME = """
Claim
Disconnected
Engine
Entry
Layer
Level
Measured
Network
Pair
Paths
Piece
Proof
Reading
Scale
Sketch
Task
Training
Weights
Work
"""
"""The public classes of which there are two or more; the list may only shrink."""


def test_no_function_is_more_complex_than_10():
    src = ROOT / "src/isthmus"
    found = {
        f"{path.relative_to(src).as_posix()}:{block.fullname}"
        for path in src.rglob("*.py")
        for block in cc_visit(path.read_text())
        if block.letter != "C" and block.complexity > 10
    }
    _only_shrinks(found, set(COMPLEX.split()))


def test_no_public_class_has_the_name_of_another():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    found = {name for name, times in names.items() if times > 1 and name[0] != "_"}
    _only_shrinks(found, set(SAME_NAME.split()))


def test_the_files_that_may_have_long_parameter_lists_have_them():
    ignored = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["per-file-ignores"]
    listed = {path for path, rules in ignored.items() if path.startswith("src/") and "PLR0913" in rules}
    command = ["ruff", "check", "--isolated", "--select=PLR0913", "--config=lint.pylint.max-args=8"]
    out = subprocess.run(
        [sys.executable, "-m", *command, "--output-format=concise", "src"], cwd=ROOT, capture_output=True, text=True
    )
    found = {line.split(":")[0] for line in out.stdout.splitlines() if "PLR0913" in line or "too-many-arg" in line}
    _only_shrinks(found, listed)


def _only_shrinks(found: set[str], listed: set[str]) -> None:
    """Nothing new is wrong, and what has become right is taken off the list."""
    assert sorted(found - listed) == [], "split or rename these"
    assert sorted(listed - found) == [], "these are right now: take them off the list"
