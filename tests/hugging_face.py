"""Small random networks of transformers, as its users have them: folders, and adapters beside them."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

_WORDS = {"vocab_size": 60}
_LABELS = {"num_labels": 3}
_ATTENTION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_GPT2 = {**_WORDS, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4}
_LLAMA = {**_WORDS, **_ATTENTION, "num_key_value_heads": 2, "max_position_embeddings": 16}
KINDS = {
    "gpt2": ("GPT2ForSequenceClassification", "GPT2Config", {**_GPT2, **_LABELS, "pad_token_id": 0}),
    "lm": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "lm1": ("GPT2LMHeadModel", "GPT2Config", {**_GPT2, "n_layer": 1}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "bert": (
        "BertForSequenceClassification",
        "BertConfig",
        {**_WORDS, **_ATTENTION, "max_position_embeddings": 16, **_LABELS},
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {**_ATTENTION, "image_size": 8, "patch_size": 4, **_LABELS},
    ),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 4, "hidden_sizes": [8, 12], "depths": [1, 2], **_LABELS},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_LLAMA, "num_local_experts": 4}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {**_WORDS, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0},
    ),
}
"""For each network its class, its config's class and what the config holds."""

_SQUARE = {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"]}
_HEAD = {"modules_to_save": ["classifier"]}
ADAPTERS = {
    "lora": ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_proj"], "task_type": "SEQ_CLS"}),
    "patterns": (
        "gpt2",
        {
            **_SQUARE,
            "use_rslora": True,
            "rank_pattern": {"h.0.attn.c_attn": 2},
            "alpha_pattern": {r"h\.1.*c_proj": 3},
        },
    ),
    "dora": ("gpt2", {"r": 4, "use_dora": True, "target_modules": ["c_attn", "c_proj", "wte"]}),
    "bias": ("gpt2", {**_SQUARE, "bias": "all"}),
    "bias of layers": ("gpt2", {**_SQUARE, "bias": "lora_only"}),
    "llama": ("llama", {"r": 2, "target_modules": "all-linear"}),
    "vit": (
        "vit",
        {"r": 2, "use_dora": True, "target_modules": ["q_proj", "projection"], **_HEAD},
    ),
    "resnet": ("resnet", {"r": 2, "target_modules": ["convolution"]}),
    "mixtral": ("mixtral", {"r": 2, "target_modules": ["q_proj"]}),
}
"""For each adapter the network under it, and its config."""


class Logits(nn.Module):
    """A network as a module of tensors (words and perhaps their mask, or images) that returns its logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(x, **({} if mask is None else {"attention_mask": mask})).logits


@cache
def network(kind, seed=0):
    """A network in evaluation mode; callers leave it as it is."""
    import transformers

    name, config, options = KINDS[kind]
    torch.manual_seed(seed)
    return getattr(transformers, name)(getattr(transformers, config)(**options)).eval()


def inputs(kind, n=4):
    """Images for networks of images, else words."""
    g = torch.Generator().manual_seed(0)
    if kind in ("vit", "resnet"):
        return torch.randn(n, 3, 8, 8, generator=g)
    return torch.randint(1, 60, (n, 8), generator=g)


@cache
def _place():
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def saved(kind, seed=0):
    """The folder of ``save_pretrained``; callers leave it as it is."""
    folder = _place() / f"{kind}-{seed}"
    network(kind, seed).save_pretrained(folder)
    return folder


@cache
def adapter(name):
    """The folder of an adapter whose weights are not as they begin; callers leave it as it is."""
    import peft

    kind, options = ADAPTERS[name]
    folder = _place() / f"adapter {name}"
    module = copy.deepcopy(network(kind))
    module.name_or_path = module.config._name_or_path = str(saved(kind))
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(module, peft.LoraConfig(**options))
        for p in (p for p in made.parameters() if p.requires_grad):
            p.data += 0.3 * torch.randn_like(p)
        made.save_pretrained(str(folder))
    return folder
