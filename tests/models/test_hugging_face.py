"""Networks of transformers from the config.json of a folder, and their weights in the names that its files have."""

import json
import shutil

import pytest
import torch

import isthmus as im
from isthmus.errors import CheckpointError, FileError, InputError
from isthmus.models import by_name
from isthmus.params import equal
from tests.hugging_face import inputs, network, saved

pytest.importorskip("transformers")
SIX = ("lm", "llama", "bert", "vit", "resnet", "mixtral")


@pytest.mark.parametrize("kind", SIX)
def test_a_folder_gives_the_network_and_its_weights(kind):
    module = by_name(f"hf:{saved(kind)}")
    assert type(module) is type(network(kind))
    assert not module.training
    params = im.load_params(saved(kind), like=module)
    assert equal(params, network(kind).state_dict())
    module.load_state_dict(params)
    with torch.no_grad():
        assert torch.equal(module(inputs(kind)).logits, network(kind)(inputs(kind)).logits)


@pytest.mark.parametrize("kind", ["vit", "mixtral"])
def test_the_names_of_a_file_are_those_of_the_module_in_wrappers_too(kind, tmp_path):
    state = im.load_params(saved(kind))
    assert state.keys() != network(kind).state_dict().keys()
    torch.save({"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}, tmp_path / "a.pt")
    wrapper = torch.nn.Sequential(network(kind, 1))
    params = im.load_params(tmp_path / "a.pt", like=wrapper)
    assert equal(params, {f"0.{k}": v for k, v in network(kind).state_dict().items()})
    del state[next(iter(state))]
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="does not hold the"):
        im.load_params(tmp_path / "b.pt", like=network(kind, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["os.system"]}, "'os.system', which transformers .* does not have, and code in the folder"),
        ({"architectures": ["AutoConfig"]}, "which is no network"),
        ({"architectures": None}, "does not say which class"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "code.Mine"}}, "code in the folder is not run"),
        ({"n_layer": 10**7}, "asks for n_layer = 10,000,000, 10,000 are allowed"),
        ({"vocab_size": 10**9}, r"asks for 16,0.* parameters, its folder holds [\d,]+ bytes"),
        ({"n_embd": 15}, "describes no network that can be made"),
        ({"quantization_config": {"bits": 4}}, "quantised weights, which cannot move"),
    ],
)
def test_configs_of_other_things_are_refused(tmp_path, changes, message):
    config = json.loads((saved("lm") / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(FileError, match=message):
        by_name(f"hf:{tmp_path}")


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"no config.json in {tmp_path}"):
        by_name(f"hf:{tmp_path}")


def test_what_trainers_leave_beside_the_weights_is_never_opened(tmp_path):
    folder = shutil.copytree(saved("gpt2"), tmp_path / "run")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "tokenizer.json", "scaler.pt"):
        (folder / name).write_bytes(b"\x80")
    assert im.load_params(folder).keys() == network("gpt2").state_dict().keys()
    (folder / "model.safetensors").rename(tmp_path / "weights.safetensors")
    state = im.load_params(tmp_path / "weights.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    assert equal(im.load_params(folder), state)
    (folder / "config.json").unlink()
    assert equal(im.load_params(folder), state)
    names = [*state]
    parts = {"pytorch_model-1.bin": names[:3], "pytorch_model-2.bin": names[3:]}
    for file, some in parts.items():
        torch.save({k: state[k] for k in some}, folder / file)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").unlink()
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {k: file for file, some in parts.items() for k in some}}))
    assert equal(im.load_params(folder), state)
    for name in ("../weights.safetensors", str(tmp_path / "weights.safetensors"), "out.bin"):
        (folder / "out.bin").unlink(missing_ok=True)
        (folder / "out.bin").symlink_to(tmp_path / "weights.safetensors")
        index.write_text(json.dumps({"weight_map": dict.fromkeys(state, name)}))
        with pytest.raises(CheckpointError, match="do not trust it"):
            im.load_params(folder)
