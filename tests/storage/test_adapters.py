"""PEFT adapters: the merged weights give the outputs of the adapter itself."""

import copy
import json
import shutil

import pytest
import torch

import isthmus as im
from isthmus.errors import CheckpointError
from tests.hugging_face import ADAPTERS, adapter, inputs, network, saved

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def outputs(module, x):
    with torch.no_grad():
        return module.eval()(x).logits


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_weights_give_the_outputs_of_the_adapter(name, tmp_path):
    kind, _ = ADAPTERS[name]
    folder, module, x = adapter(name), network(kind), inputs(kind)
    true = outputs(peft.PeftModel.from_pretrained(copy.deepcopy(module), folder), x)
    base = outputs(module, x)
    merged = copy.deepcopy(module)
    merged.load_state_dict(im.load_params(folder, like=module))
    assert float((true - base).abs().max()) > 0.01
    torch.testing.assert_close(outputs(merged, x), true, rtol=1e-5, atol=1e-5 * float(true.abs().max()))


def test_a_base_is_named_by_the_config_or_by_an_argument(tmp_path):
    folder = shutil.copytree(adapter("lora"), tmp_path / "adapter")
    named = im.load_params(folder)
    edit(folder, base_model_name_or_path="somebody/else")
    with pytest.raises(CheckpointError, match=r"adapter for 'somebody/else', which is not on this machine; .*base="):
        im.load_params(folder)
    given = im.load_params(folder / "adapter_model.safetensors", base=saved("gpt2"))
    assert named.keys() == given.keys()
    assert all(torch.equal(named[k], given[k]) for k in named)
    with pytest.raises(CheckpointError, match=r"changes 'transformer.h.0.attn.c_attn.weight', which its base has not"):
        im.load_params(folder, base=saved("vit"))
    with pytest.raises(CheckpointError, match="is an adapter for the adapter"):
        im.load_params(folder, base=folder)
    with pytest.raises(CheckpointError, match="is no PEFT adapter, and has no base"):
        im.load_params(saved("gpt2"), base=saved("gpt2"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3; LoRA, rsLoRA and DoRA are read"),
        ({"peft_type": None}, "does not say which kind"),
        ({"lora_alpha": "8"}, "no number as its lora_alpha"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "a LoRA with target_parameters, which is not read"),
        ({"something_new": 1}, "a LoRA with something_new, which is not read"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4, which changes the weights of its base"),
        ({"alpha_pattern": {"(a*)*b": 2}}, "other patterns than names"),
        ({"alpha_pattern": {"h.0": "2"}}, "no number as its alpha_pattern"),
        ({"bias": "x" * 1_000_001}, "a config of more than 1 MB"),
        ({"fan_in_fan_out": False}, r"whether the square weight of '.*c_proj' is kept as \[in, out\] or \[out, in\]"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, changes, message):
    folder = shutil.copytree(adapter("lora"), tmp_path / "adapter")
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        im.load_params(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_A.weight": torch.ones(2, 10**6), "lora_B.weight": torch.ones(10**6, 2)}, "by a matrix of shape"),
        ({"lora_B.weight": torch.ones(48, 3)}, "two halves of the change of .* that do not fit"),
        ({"lora_A.weight": None}, "holds one half of the change"),
        ({"lora_magnitude_vector.weight": torch.ones(3)}, "holds other magnitudes than the rows of"),
        ({"lora_C.weight": torch.ones(2, 2)}, "'base_model.model.transformer.h.0.attn.c_attn.lora_C.weight', which is"),
    ],
)
def test_halves_that_do_not_fit_are_refused_before_they_are_multiplied(tmp_path, changes, message):
    folder = shutil.copytree(adapter("lora"), tmp_path / "adapter")
    layer = "base_model.model.transformer.h.0.attn.c_attn."
    held = read(folder)
    held |= {layer + k: v for k, v in changes.items()}
    (folder / "adapter_model.safetensors").unlink()
    torch.save({k: v for k, v in held.items() if v is not None}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=message):
        im.load_params(folder)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"h.0.lora_A.weight": torch.ones(2, 2)}, "holds 'h.0.lora_A.weight', a name that PEFT does not write"),
        ({"base_model.model.score.weight": torch.ones(2, 2)}, "a LoRA without a layer that it changes"),
        ({}, "a LoRA without a layer that it changes"),
    ],
)
def test_files_that_hold_no_adapter_are_refused(tmp_path, held, message):
    folder = shutil.copytree(adapter("lora"), tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds adapter_config.json, but no adapter_model.safetensors"):
        im.load_params(folder)
    torch.save(held, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=message):
        im.load_params(folder)


def test_a_base_may_have_a_prefix_that_the_adapter_has_not(tmp_path):
    folder = adapter("lora")
    torch.save({f"inner.{k}": v for k, v in network("gpt2").state_dict().items()}, tmp_path / "base.pt")
    given, named = im.load_params(folder, base=tmp_path / "base.pt"), im.load_params(folder)
    assert given.keys() == named.keys()
    assert all(torch.equal(given[k], named[k]) for k in named)


def test_a_change_of_one_of_two_tied_layers_is_refused(tmp_path):
    module = network("lm")
    folder = shutil.copytree(adapter("lora"), tmp_path / "adapter")
    edit(folder, base_model_name_or_path=str(saved("lm")))
    before = read(folder)
    del before["base_model.model.score.weight"]
    for more, error in (({}, False), ({"lm_head.weight": torch.ones(60, 16)}, True)):
        held = before | {f"base_model.model.{k}": v for k, v in more.items()}
        (folder / "adapter_model.safetensors").unlink(missing_ok=True)
        torch.save(held, folder / "adapter_model.bin")
        if error:
            with pytest.raises(CheckpointError, match=r"'transformer.wte.weight', which the module ties"):
                im.load_params(folder, like=module)
        else:
            assert im.load_params(folder, like=module).keys() == module.state_dict().keys()


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def read(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")
