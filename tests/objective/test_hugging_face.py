"""Models of Hugging Face as they are: random ones of small configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import isthmus as im

T = pytest.importorskip("transformers")

G = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 40, (5, 7), generator=G)
MASK = torch.ones(5, 7, dtype=torch.int64)
MASK[1, 5:] = MASK[3, 3:] = 0
TEXT = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS.masked_fill(MASK == 0, -100)}
WORDS = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1, 2, 0, 1])}
IMAGES = {"pixel_values": torch.randn(5, 3, 16, 16, generator=G), "labels": torch.tensor([0, 1, 2, 0, 1])}
NEXT = im.CrossEntropy(mean="tokens", shift=True)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"vocab_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 16, **SIZES}

MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any], Any]] = {
    "gpt2": (
        lambda: T.GPT2LMHeadModel(
            T.GPT2Config(
                vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
            )
        ),
        TEXT, NEXT,
    ),
    "llama": (lambda: T.LlamaForCausalLM(T.LlamaConfig(**LLAMA)), TEXT, NEXT),
    "bert": (
        lambda: T.BertForSequenceClassification(
            T.BertConfig(vocab_size=40, max_position_embeddings=16, num_labels=3, **SIZES)
        ),
        WORDS, "cross_entropy",
    ),
    "vit": (
        lambda: T.ViTForImageClassification(T.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SIZES)),
        IMAGES, "cross_entropy",
    ),
    "resnet": (
        lambda: T.ResNetForImageClassification(
            T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3)
        ),
        IMAGES, "cross_entropy",
    ),
    "mixtral": (
        lambda: T.MixtralForCausalLM(T.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **LLAMA)), TEXT, NEXT,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "batch", "loss"), MODELS.values(), ids=MODELS.keys())
def test_models_of_hugging_face(make: Callable[[], Any], batch: dict[str, Any], loss: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    rows = [{k: v[i] for k, v in batch.items()} for i in range(5)]
    objective = im.Objective(model, loss, DataLoader(rows, batch_size=2))  # type: ignore[arg-type]
    with torch.no_grad():
        assert objective.loss(model) == pytest.approx(float(model(**batch).loss), rel=1e-6)
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    assert objective.outputs(model).allclose(logits, atol=1e-5)
    assert list(objective.check(model)) == list(model.state_dict()), "names are the model's own"
    params = {k: v.clone() for k, v in objective.check(model).items()}
    moving = {k: params[k].requires_grad_() for k in objective.parameter_names}
    objective.batch_loss(params | moving, torch.arange(5)).backward()
    model(**batch).loss.backward()
    for name, p in model.named_parameters():
        assert moving[name].grad.allclose(p.grad, rtol=1e-3, atol=1e-5), name  # type: ignore[union-attr]
