"""Which weights of a checkpoint are taken: names are matched to the module, and what is left unused is named."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import isthmus as im
from isthmus.errors import CheckpointError, InputError, IsthmusWarning
from isthmus.params import equal
from isthmus.storage import load_params


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


torch.manual_seed(0)
NET = mlp()
STATE = dict(NET.state_dict())
DATA = (torch.randn(20, 8), torch.arange(20) % 3)
OBJECTIVE = im.Objective(NET, data=DATA)
TRUTH = OBJECTIVE.loss(STATE)
TWICE = {k: 2 * v for k, v in STATE.items()}


def before(prefix, state=STATE):
    return {prefix + k: v for k, v in state.items()}


class Wrap(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = mlp()

    def forward(self, x):
        return self.module(x)


class Lightning(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.criterion = torch.compile(NET), nn.CrossEntropyLoss(weight=torch.ones(3))


AVERAGED = torch.optim.swa_utils.AveragedModel(NET).state_dict()
COMPILED_PART = {k.replace("2.", "2._orig_mod."): v for k, v in STATE.items()}

# what stands in the file, and what is named as left unused
LAYOUTS = {
    "AveragedModel": (AVERAGED, "n_averaged"),
    "lightning and compile": ({"state_dict": before("model._orig_mod.")}, None),
    "lightning": ({"state_dict": before("model."), "pytorch-lightning_version": "2.4", "loops": {}}, None),
    "pytorch-cifar": ({"net": before("module."), "acc": 91.0}, None),
    "ema": ({"ema": STATE}, None),
    "deepspeed": ({"module": STATE, "ds_version": "0.1"}, None),
    "timm": ({"state_dict": STATE, "state_dict_ema": TWICE}, "'state_dict_ema' (key='state_dict_ema' takes it)"),
    "swa": ({"state_dict": STATE, "swa_state_dict": TWICE}, "'swa_state_dict'"),
    "model_ema": ({"model": STATE, "model_ema": TWICE, "epoch": 3}, "'model_ema'"),
    "torch_ema": (
        {"net": STATE, "ema": {"shadow_params": [*TWICE.values()]}},
        "the list of tensors 'ema.shadow_params'",
    ),
    "swa before": ({"swa_state_dict": TWICE, "model": STATE}, "'swa_state_dict'"),
    "numpy scalar": ({"state_dict": STATE, "best": np.float64(0.9)}, None),
    "opacus": (before("_module."), None),
    "three wrappers": (before("module._orig_mod.module."), None),
    "a compiled part": (COMPILED_PART, None),
    "fsdp": (before("_fsdp_wrapped_module."), None),
    "nested": ({"model": {"state_dict": STATE, "name": "mlp"}}, None),
    "twice the same": ({"model": STATE, "state_dict": STATE}, None),
    "a number beside": ({"best": torch.tensor(0.5), "network": STATE}, None),
    "ema of one dictionary, averaged alone": ({"ema": {"shadow": STATE, "decay": 0.9}}, None),
}


def loaded(path, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        params = load_params(path, **options)
    assert all(w.category is IsthmusWarning and w.filename == __file__ for w in caught)
    assert len(caught) < 2
    return params, str(caught[0].message) if caught else ""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_network_with_and_without_a_module(tmp_path, name, zipped):
    saved, unused = LAYOUTS[name]
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    for like in (None, NET, OBJECTIVE, STATE, torch.compile(NET)):
        params, note = loaded(tmp_path / "w.pt", like=like)
        names = "_orig_mod." if isinstance(like, nn.Module) and like is not NET else ""
        assert list(params) == [names + k for k in STATE]
        assert equal(dict(zip(STATE, params.values(), strict=True)), STATE)
        assert OBJECTIVE.loss(params) == TRUTH
        assert (f"{tmp_path / 'w.pt'}: took the weights" in note and unused in note) if unused else note == ""


# layouts that only the module tells apart
MATCHED = {
    "unknown prefix": (before("wrapped.inner."), ""),
    "unknown entry": ({"generator": STATE, "epoch": 1}, ""),
    "loss with weights": (
        {"state_dict": before("model.") | {"criterion.weight": torch.ones(3)}},
        "took the weights under 'state_dict.model'; left unused: criterion.weight",
    ),
    "averages beside": (
        {"state_dict": before("model.") | before("ema_model.", TWICE)},
        "'state_dict.ema_model' (key='state_dict.ema_model' takes it)",
    ),
    "averages under a known name": (before("ema.", TWICE) | before("net."), "'ema' (key='ema' takes it)"),
    "averages beside bare names": (STATE | before("model_ema.", TWICE), "'model_ema' (key='model_ema' takes it)"),
    "a text beside": (STATE | {"note": "text"}, ""),
    "another network first": ({"model": {"w": torch.ones(2)}, "policy": STATE}, ""),
    "target": ({"state_dict": before("net.") | before("target_net.", TWICE)}, "'state_dict.target_net'"),
    "lightning module": (Lightning().state_dict(), "criterion.weight"),
    "inside a tuple of names": ({"a": {"b": {"c": STATE}}}, ""),
}


@pytest.mark.parametrize("name", MATCHED)
def test_names_are_matched_to_the_module_under_any_prefix(tmp_path, name):
    saved, unused = MATCHED[name]
    torch.save(saved, tmp_path / "w.pt")
    params, note = loaded(tmp_path / "w.pt", like=OBJECTIVE)
    assert equal(params, STATE)
    assert unused in note
    assert bool(unused) == bool(note)


KEYS = {
    "an entry": ({"state_dict": TWICE, "state_dict_ema": STATE}, "state_dict_ema"),
    "an entry of an entry": ({"a": {"b": STATE, "c": TWICE}, "model": TWICE}, "a.b"),
    "a name with a dot": ({"v1.0": {"b": STATE}, "model": TWICE}, "v1.0.b"),
    "a prefix of names": (before("student.") | before("teacher.", TWICE), "student"),
    "a prefix in an entry": ({"state_dict": before("net.", TWICE) | before("ema.module.")}, "state_dict.ema"),
    "a prefix after torch.compile's": (before("_orig_mod.a.") | before("_orig_mod.b.", TWICE), "a"),
    "a wrapper inside": ({"ema": {"module": STATE}, "model": TWICE}, "ema"),
}


@pytest.mark.parametrize("like", [None, NET])
@pytest.mark.parametrize("name", KEYS)
def test_key_selects(tmp_path, name, like):
    saved, key = KEYS[name]
    torch.save(saved, tmp_path / "w.pt")
    assert equal(load_params(tmp_path / "w.pt", key=key, like=like), STATE)


def test_key_selects_in_safetensors_and_shards_too(tmp_path):
    save_file(before("student.") | before("teacher.", TWICE), tmp_path / "w.safetensors")
    assert equal(load_params(tmp_path / "w.safetensors", key="student"), STATE)
    assert equal(load_params(tmp_path / "w.safetensors", key="teacher"), TWICE)


AMBIGUOUS = {
    "entries": ({"student": STATE, "teacher": TWICE}, "several state dicts: student, teacher; write key='student' or"),
    "prefixes": (before("a.") | before("b.", TWICE), "several state dicts: a, b; write key='a' or key='b'"),
    "plain": ({"model": STATE, "net": TWICE}, "several state dicts: model, net; write key='model' or key='net'"),
    "averages": ({"ema": STATE, "swa": TWICE}, "several state dicts: ema, swa; write key='ema' or key='swa'"),
    "more layers": (STATE | {"4.weight": torch.ones(3, 3)}, "holds '4.weight', a part of the network that"),
    "more of a layer": (STATE | {"2.scale": torch.ones(3)}, "holds '2.scale', a part of the network that"),
    "more layers, wrapped": (before("module.", STATE | {"4.weight": torch.ones(3, 3)}), "holds 'module.4.weight'"),
    "fewer layers": ({k: v for k, v in STATE.items() if k[0] == "0"}, "'2.weight' is missing; it has 0.weight, 0.bias"),
    "nothing": ({"epoch": 1}, r"it has epoch \(int\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_mean_two_things_is_refused_with_the_keys_to_write(tmp_path, name):
    saved, message = AMBIGUOUS[name]
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message) as error:
        load_params(tmp_path / "w.pt", like=OBJECTIVE)
    assert "\n" not in str(error.value)


def test_a_key_that_is_not_there_says_what_is(tmp_path):
    torch.save({"state_dict": STATE, "ema": {"module": TWICE}, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"no tensors under 'emma'; it has 'state_dict', 'ema.module'"):
        load_params(tmp_path / "w.pt", key="emma")
    with pytest.raises(CheckpointError, match="no tensors under 'epoch'"):
        load_params(tmp_path / "w.pt", key="epoch")
    with pytest.raises(
        InputError,
        match=r"like: expected a torch.nn.Module, an Objective, a state_dict \(tensors by name\) or None, got int",
    ):
        load_params(tmp_path / "w.pt", like=3)  # pyright: ignore


def test_shapes_choose_between_parts_that_have_the_names_of_the_module(tmp_path):
    torch.save(STATE | {"note": "text"}, tmp_path / "w.pt")
    params, note = loaded(tmp_path / "w.pt", like=nn.Linear(16, 3))
    assert equal(params, {"weight": STATE["2.weight"], "bias": STATE["2.bias"]})
    assert "took the weights under '2'; left unused: 0.weight, 0.bias" in note


# -- a module with the prefix


def test_a_module_that_has_the_prefix_itself_takes_its_names(tmp_path):
    objective = im.Objective(Wrap(), data=DATA)
    torch.save(before("module."), tmp_path / "w.pt")
    stripped = load_params(tmp_path / "w.pt")
    assert objective.loss(stripped) == objective.loss(before("module.")) == TRUTH
    matched = load_params(tmp_path / "w.pt", like=objective)
    assert list(matched) == list(before("module."))
    assert objective.loss(matched) == TRUTH
    connection = im.connect(objective, stripped, before("_orig_mod.module.", TWICE), im.Linear())
    assert list(connection.path.start) == list(connection.path.end) == list(before("module."))


def test_check_renames_only_what_it_cannot_mistake():
    assert OBJECTIVE.loss(before("model._orig_mod.")) == TRUTH
    with pytest.raises(
        InputError, match=r"got 'module.0.weight', beside 'n_averaged'; write load_params\(path, like=obj"
    ):
        OBJECTIVE.loss(AVERAGED)
    with pytest.raises(InputError, match=r"expected the key\(s\) 0.bias"):
        OBJECTIVE.loss({k: v for k, v in STATE.items() if k != "0.bias"})
    with pytest.raises(InputError, match="also extra"):
        OBJECTIVE.loss(STATE | {"extra": torch.ones(1)})


def test_paths_must_have_the_names_of_the_module():
    raw = [before("module."), before("module.", TWICE)]
    path, plain = im.Path.through(raw), im.Path.through([STATE, TWICE])
    checked = im.Path.through([OBJECTIVE.check(p) for p in raw])
    assert im.profile(OBJECTIVE, checked, 5).loss.tolist() == im.profile(OBJECTIVE, plain, 5).loss.tolist()
    for measure in (im.profile, im.certify):
        with pytest.raises(
            InputError, match=r"path: expected .*'0.weight', got .*write Path.through\(\[objective.check"
        ):
            measure(OBJECTIVE, path)


# -- ties


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(12, 6)
        self.out = nn.Linear(6, 12, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, x):
        return self.out(torch.relu(self.emb(x).mean(1)))


def test_tied_weights_of_which_the_file_has_one_copy(tmp_path):
    torch.manual_seed(0)
    net = Tied().eval()
    x, y = torch.randint(0, 12, (16, 5)), torch.randint(0, 12, (16,))
    objective = im.Objective(net, "cross_entropy", (x, y))
    truth = float(nn.functional.cross_entropy(net(x), y))
    save_model(net, str(tmp_path / "w.safetensors"))
    weight = net.emb.weight.detach()
    save_file({"out.weight": weight.clone()}, tmp_path / "other.safetensors")
    torch.save(before("model.", {"out.weight": weight}), tmp_path / "w.pt")
    for file in ("w.safetensors", "other.safetensors", "w.pt"):
        for like in (None, net, objective):
            assert objective.loss(load_params(tmp_path / file, like=like)) == pytest.approx(truth, rel=1e-6)
        assert list(load_params(tmp_path / file, like=net)) == ["emb.weight", "out.weight"]
    assert list(load_params(tmp_path / "w.safetensors")) == ["emb.weight", "out.weight"]
    with pytest.raises(InputError, match=r"'out.weight'\]: expected the tensor it is tied to, 'emb.weight', got other"):
        objective.loss({"emb.weight": weight, "out.weight": 2 * weight})


def test_metadata_name_further_copies_only_where_they_can(tmp_path):
    save_file(
        {"a.weight": torch.ones(2)}, tmp_path / "w", {"best": "a.weight", "b.weight": "a.weight", "c.weight": "d"}
    )
    assert set(load_params(tmp_path / "w")) == {"a.weight", "b.weight"}


# -- kinds of numbers


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrow_weights_are_widened_exactly(tmp_path, kind):
    narrow = {k: v.to(kind) for k, v in STATE.items()}
    torch.save({"state_dict": before("module.", narrow)}, tmp_path / "w.pt")
    params = load_params(tmp_path / "w.pt", like=OBJECTIVE)
    assert params["0.weight"].dtype == kind
    assert OBJECTIVE.loss(params) == OBJECTIVE.loss({k: v.float() for k, v in narrow.items()})


def test_tensors_without_plain_values_are_named_with_what_to_write():
    odd = {
        "quantised; write tensor.dequantize()": torch.quantize_per_tensor(STATE["0.weight"], 0.1, 0, torch.qint8),
        "sparse; write tensor.to_dense()": STATE["0.weight"].to_sparse(),
        "meta": STATE["0.weight"].to("meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }
    for text, tensor in odd.items():
        with pytest.raises(InputError, match=r"params\['0.weight'\]: expected a dense tensor of ordinary") as error:
            OBJECTIVE.loss(STATE | {"0.weight": tensor})
        assert text in str(error.value)


def test_counters_that_old_files_have_not_are_zero(tmp_path):
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    old = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    torch.save(before("module.", old), tmp_path / "w.pt")
    params = load_params(tmp_path / "w.pt", like=net)
    assert equal(params, dict(net.state_dict()))
    objective = im.Objective(net, data=DATA)
    assert objective.loss(params) == objective.loss(net.state_dict())


# -- shards


def bin_shards(folder, zipped=True, names=("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")):
    keys = list(STATE)
    parts = dict(zip(names, (keys[:2], keys[2:]), strict=True))
    for name, part in parts.items():
        torch.save({k: STATE[k] for k in part}, folder / name, _use_new_zipfile_serialization=zipped)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {k: name for name, part in parts.items() for k in part}}))
    return index


@pytest.mark.parametrize("zipped", [True, False])
def test_shards_of_torch_files_load(tmp_path, zipped):
    index = bin_shards(tmp_path, zipped)
    assert equal(load_params(index), STATE)
    assert equal(load_params(tmp_path, like=NET), STATE)


def test_shards_of_torch_files_are_read_as_safely_as_one(tmp_path):
    index = bin_shards(tmp_path)
    shard = tmp_path / "pytorch_model-00002-of-00002.bin"
    for saved, message in (
        ({"2.weight": nn.Linear(2, 2)}, r"00002.bin: needs code to be read \(torch.nn"),
        ({"2.weight": torch.ones(3, 16), "2.bias": 3}, "does not hold tensors alone"),
        ({"2.weight": STATE["2.weight"]}, "names '2.bias', which is not in pytorch_model-00002"),
        ({"2.weight": torch.ones(1).expand(10**6, 16)}, "claims 64,000,000 bytes"),
    ):
        torch.save(saved, shard)
        with pytest.raises(CheckpointError, match=message) as error:
            load_params(tmp_path)
        assert str(error.value).startswith(f"{index}: ")
    shard.write_text(index.read_text())
    with pytest.raises(CheckpointError, match=r"00002.bin: is JSON text"):
        load_params(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"00002.bin: there is no such file"):
        load_params(tmp_path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"weight_map":' * 50_000, '{"weight_map": {"w": 1e400}}', "9" * 10_000]
)
def test_an_index_that_nests_or_overflows_is_refused(tmp_path, text):
    (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(CheckpointError):
        load_params(tmp_path)
