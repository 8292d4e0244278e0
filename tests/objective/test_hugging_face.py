"""Models of Hugging Face as they are: random ones of small configurations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import isthmus as im
from tests.hugging_face import inputs, network

pytest.importorskip("transformers")

G = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 60, (5, 7), generator=G)
MASK = torch.ones(5, 7, dtype=torch.int64)
MASK[1, 5:] = MASK[3, 3:] = 0
TEXT = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS.masked_fill(MASK == 0, -100)}
WORDS = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1, 2, 0, 1])}
IMAGES = {"pixel_values": inputs("vit", 5), "labels": torch.tensor([0, 1, 2, 0, 1])}
NEXT = im.CrossEntropy(mean="tokens", shift=True)
MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "lm": (TEXT, NEXT),
    "llama": (TEXT, NEXT),
    "bert": (WORDS, "cross_entropy"),
    "vit": (IMAGES, "cross_entropy"),
    "resnet": (IMAGES, "cross_entropy"),
    "mixtral": (TEXT, NEXT),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_hugging_face(kind: str) -> None:
    batch, loss = MODELS[kind]
    model = copy.deepcopy(network(kind))
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


def test_an_encoder_decoder_is_given_what_its_decoder_reads() -> None:
    batch = {k: TEXT[k] for k in ("input_ids", "labels")}
    model = network("t5")
    with pytest.raises(im.InputError, match="decoder_input_ids in every batch"):
        im.Objective(model, data=batch)
    own = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    objective = im.Objective(model, im.CrossEntropy(mean="tokens"), batch | {"decoder_input_ids": own})
    with torch.no_grad():
        assert objective.loss(model) == pytest.approx(float(model(**batch).loss), rel=1e-6)
