"""Mutants of every format: house errors or results, never another error, and no silent difference in our own files.

The full counts are reached by ``python -m tests.long.mutants``.
"""

import random
import re

import pytest
import torch

import isthmus as im
from isthmus.cli.common import _values
from isthmus.errors import InputError, IsthmusError
from isthmus.experiments.plain_yaml import plain_yaml
from isthmus.experiments.sweep_file import read_sweep
from isthmus.storage.tensors import digest, save_tensors
from tests.long import mutants
from tests.long.hostile import HOSTILE, OPTIONS

pytest.importorskip("matplotlib")
NAMES = [
    "path", "manifest", "certificate", "folder-result", "folder-profile", "folder-certificate", "alignment",
    "checkpoint", "pt", "pt-legacy", "sweep", "option", "graph", "store",
    "hf-index", "hf-shard", "peft-config", "peft-weights", "npz",
]  # fmt: skip


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    return mutants.formats(tmp_path_factory.mktemp("formats"))


def test_all_formats_are_attacked(formats):
    assert list(formats) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_mutants(formats, name):
    tally = mutants.attack(formats[name], 4 if name == "certificate" else 12, random.Random(name))
    assert not tally.counts["raw"] + tally.counts["silent"] + tally.counts["slow"], tally


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{q}: &{q} [{', '.join([f'*{p}'] * 9)}]\n" for p, q in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", [*OPTIONS, *HOSTILE, BOMB], ids=lambda text: ascii(text[:12]))
def test_values_that_people_type(tmp_path, text):
    """A plain value, or one line that is no traceback: after --option, and in a sweep file."""
    said = ""
    try:
        _values([f"x={text}"])
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
    assert len(said) < 400
    file = tmp_path / "s.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(IsthmusError):
        read_sweep(file)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2020-99-99", "month must be in"),
        ("2020-01-01", "a date, which is not a number"),
        ("!!int 'abc'", "invalid literal"),
        ("[", "while parsing"),
        ("\ta", "cannot start any token"),
        ("[" * 3000, "60 deep"),
        ("9" * 400, "over 300 digits"),
        ("&a [*a]", "more than 100,000 values"),
        (BOMB, "more than 100,000 values"),
        ("!!set {a}", "a set"),
    ],
)
def test_what_is_no_plain_value_is_said(text, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        plain_yaml(text)


@pytest.mark.parametrize("option", ["keep=.nan", "keep=.inf", "keep=1e999"])
def test_options_that_are_not_finite(option):
    from isthmus.storage.methods import connector_from

    with pytest.raises(InputError):
        connector_from({**_values([option]), "name": "Dropout"})


def test_a_description_is_not_believed_where_the_name_of_its_digest_was_hit_too(tmp_path):
    params = {"w": torch.arange(3.0)}
    file = tmp_path / "a.safetensors"
    im.save_params(params, file, {"loss": "cross_entropy"})
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"isthmus.seal", b"isthmus.se-l").replace(b"cross_entropy", b"cross_entr-py"))
    with pytest.raises(im.CheckpointError, match="do not match their digest"):
        im.load_params(file)
    # files of old versions have no such digest, and those of others have digests of their own
    old = {"loss": "mse", "isthmus.digest": digest(params)}
    for metadata in (old, {"sshs_model_hash": "0" * 64}):
        save_tensors(params, file, metadata)
        assert torch.equal(im.load_params(file)["w"], params["w"])
