"""What the key of a cell depends on beside its fields: the files and the code that they name."""

import json
import os
import sys

import numpy as np

import isthmus as im
from isthmus.experiments import Network, Problem, jobs
from isthmus.sweep import identity, key_of
from isthmus.training.fit import Ended


def test_a_model_in_a_file_is_part_of_the_key(tmp_path):
    file = tmp_path / "net.py"
    keys = set()
    for k, width in enumerate((4, 5)):
        file.write_text(f"from torch import nn\ndef make():\n    return nn.Linear({width}, 2)\n")
        os.utime(file, (k, k))
        keys.add(key_of(identity(Network(Problem(f"{file}:make", "gaussians:N=6,d=4")))))
    assert len(keys) == 2


def test_what_a_model_of_the_user_reads_is_part_of_the_key(tmp_path, monkeypatch):
    """A module by its name, what another one defines, and the folder of a network of transformers."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_net.py").write_text("from my_parts import make\n")
    keys = {}
    for text in ("make = lambda: nn.Linear(4, 2)", "make = lambda: nn.Linear(4, 2, bias=False)"):
        (tmp_path / "my_parts.py").write_text(f"from torch import nn\n{text}\n")
        (tmp_path / "config.json").write_text(json.dumps({"made": text}))
        for name in ("my_net", "my_parts"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        for model in ("my_net:make", f"{tmp_path}/my_net.py:make", f"hf:{tmp_path}"):
            jobs._file_code_digest.cache_clear()  # a later process
            keys.setdefault(model, set()).add(key_of(identity(Network(Problem(model, "gaussians:N=6,d=4")))))
    assert [len(k) for k in keys.values()] == [2, 2, 2]


def test_another_file_of_the_same_size_and_time_is_part_of_the_key(tmp_path):
    keys = set()
    for k in range(2):
        np.savez(tmp_path / "new.npz", x=np.eye(3, dtype=np.float32) + k, y=np.array([0, 1, 0]))
        os.utime(tmp_path / "new.npz", (1, 1))
        os.replace(tmp_path / "new.npz", tmp_path / "d.npz")
        keys.add(key_of(identity(Network(Problem("mlp:3-4-2", str(tmp_path / "d.npz"))))))
    assert len(keys) == 2


def test_training_to_zero_error_that_diverges_is_not_done():
    recipe = im.Recipe("sgd", lr=1e30, steps=50, batch=25, schedule="constant")
    found = Problem("mlp:64-4-10", "digits", 50, dtype="float32").train_to_zero_error(0, recipe)
    assert found.ended is Ended.NOT_FINITE
    assert all(bool(v.isfinite().all()) for v in found.params.values())
