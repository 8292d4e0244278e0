"""Adapters of PEFT (LoRA, rsLoRA, DoRA), added to the weights that they were trained on.

The merged weight of a layer is W + s B A, where A [r, in] and B [out, r] are the adapter's, and s is alpha / r, or
alpha / sqrt(r) for rsLoRA (Hu et al. 2021; Kalajdzievski 2023); with magnitudes m [out] (DoRA, Liu et al. 2024, eq. 5)
it is m (W + s B A) / ||W + s B A||, row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import CheckpointError
from isthmus.params import Params
from isthmus.storage.contents import Contents, Like, wanted
from isthmus.storage.files import check_regular, one_line, read_json
from isthmus.storage.folders import ADAPTER
from isthmus.storage.translated import translated

__all__ = ["AdapterContents", "Lora", "read_lora"]

_CONFIG_BYTES = 1_000_000
_ROOT = "base_model.model."
_PART = re.compile(r"(.+)\.lora_(?:embedding_)?(A|B|magnitude_vector)(?:\.weight)?")
_AGAIN = "copy or download it again"
_MERGE = "where it was trained, write model.merge_and_unload().save_pretrained(FOLDER)"

# of a pattern in a config, with which names of layers are searched: what cannot make the search take long
_PATTERN = re.compile(r"[\w.^$\\|()\[\]-]*([*+][\w.^$\\|(\[\]-]*){0,2}", re.ASCII)
_LONGEST = 300  # characters of a pattern, and of a name that is searched for one

# entries of the config that say how an adapter was made or is used, not what it does
_HARMLESS = {
    "arrow_config", "auto_mapping", "base_model_class", "base_model_name_or_path", "bias", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "modules_to_save", "parent_library", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "alpha_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
    "velora_config",
}  # fmt: skip
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that take what the adapter begins with away from the base's weights."""


@dataclass(frozen=True)
class Lora:
    """What an adapter folder holds: for each layer A and B (and magnitudes), and tensors that replace others.

    `transposed`: whether the layers keep their weights [in, out], as those of GPT-2 do.
    """

    path: Path
    base: str
    alpha: float
    alphas: Mapping[str, float]
    rooted: bool
    transposed: bool
    layers: Mapping[str, Mapping[str, Tensor]]
    replaced: Params

    @property
    def changed(self) -> set[str]:
        """The names of the weights that the adapter changes or replaces."""
        return {f"{layer}.weight" for layer in self.layers} | set(self.replaced)

    def onto(self, base: Mapping[str, Tensor]) -> Params:
        """The merged weights, in the names that the adapter uses. Errors: ``CheckpointError`` for another base."""
        merged = self._aligned(base) | self.replaced
        weights = {layer: merged[f"{layer}.weight"] for layer in self.layers}
        turned = self._turned(weights)
        changed = {f"{k}.weight": self._merged(k, weight, k in turned) for k, weight in weights.items()}
        return merged | changed

    def _aligned(self, base: Mapping[str, Tensor]) -> Params:
        """The base's weights under the adapter's names: a prefix can stand before those of either."""
        names = [f"{layer}.weight" for layer in self.layers if f"{layer}.weight" not in self.replaced]
        for named in _other_names(base, next(iter(names), "")):
            if named.keys() >= set(names):
                return named
        missing = next(name for name in names if name not in base)
        why = f"changes {one_line(missing, 80)!r}, which its base has not"
        raise CheckpointError(self.path, why, "give the base that it was trained on: base=, or --base")

    def _turned(self, weights: Mapping[str, Tensor]) -> set[str]:
        """The layers that keep their weights [in, out]: embeddings, and those whose shape, or else the config, says it.

        Errors: ``CheckpointError`` for square weights where shapes show that the config does not speak for all.
        """
        kept = {k: _is_kept_turned(weight, self.layers[k]) for k, weight in weights.items()}
        unclear = {k for k, turned in kept.items() if turned is None}
        matrices = [k for k, v in weights.items() if v.dim() == 2 and "embedding" not in self.layers[k]]
        self._check_clear(unclear, {*map(kept.get, matrices)} - {None})
        return {k for k, turned in kept.items() if turned} | (unclear if self.transposed else set())

    def _check_clear(self, unclear: set[str], told: set[bool | None]) -> None:
        if unclear and told - {self.transposed}:
            layer = one_line(min(unclear), 80)
            why = f"does not say whether the square weight of {layer!r} is kept as [in, out] or [out, in]"
            raise CheckpointError(self.path, why, _MERGE)

    def _merged(self, layer: str, weight: Tensor, turned: bool) -> Tensor:
        parts = self.layers[layer]
        a, b = parts["A"], parts["B"]
        rows = weight.T if turned else weight
        change = (len(b), *a.shape[1:])
        if not weight.is_floating_point() or rows.shape != change:
            shapes = f"of shape {list(change)}, its base is of {list(rows.shape)}"
            raise CheckpointError(self.path, f"changes {one_line(layer, 80)!r} by a matrix {shapes}", _MERGE)
        kind = torch.promote_types(torch.promote_types(weight.dtype, a.dtype), torch.float32)
        out = rows.to(kind).flatten(1) + self._scale(layer, len(a)) * (b.to(kind).flatten(1) @ a.to(kind).flatten(1))
        if "magnitude_vector" in parts:
            out *= (parts["magnitude_vector"].to(kind).flatten() / torch.linalg.norm(out, dim=1))[:, None]
        out = out.reshape(rows.shape)
        return (out.T if turned else out).to(torch.promote_types(weight.dtype, a.dtype)).contiguous()

    def _scale(self, layer: str, rank: int) -> float:
        alpha = next((v for key, v in self.alphas.items() if re.match(rf"(.*\.)?({key})$", layer)), self.alpha)
        return alpha / (rank**0.5 if self.rooted else rank)


def _is_kept_turned(weight: Tensor, parts: Mapping[str, Tensor]) -> bool | None:
    """Whether a layer keeps its weight as [in, out]; ``None`` where its shape does not say it."""
    if "embedding" in parts or weight.dim() != 2:
        return "embedding" in parts
    return None if len(weight) == weight.shape[1] else len(weight) != len(parts["B"])


def _other_names(base: Mapping[str, Tensor], wanted: str) -> Iterator[Params]:
    """The weights under their own names, with the first part of `wanted` before them, and without what stands there."""
    yield dict(base)
    yield {wanted.partition(".")[0] + "." + k: v for k, v in base.items()}
    for before in [k.removesuffix(wanted) for k in base if k.endswith("." + wanted)]:
        yield {k.removeprefix(before): v for k, v in base.items()}


def read_lora(folder: Path, tensors: Mapping[str, Tensor]) -> Lora:
    """The adapter in a folder, from its config and its tensors. Errors: ``CheckpointError`` for one that does more."""
    config = _config(folder)
    layers: dict[str, dict[str, Tensor]] = {}
    replaced: Params = {}
    for name, tensor in tensors.items():
        own = _own_name(folder, name)
        if found := _PART.fullmatch(own):
            layers.setdefault(found[1], {})[found[2]] = tensor
            if "lora_embedding_" in own:
                layers[found[1]]["embedding"] = tensor
        elif "lora_" in own or "token_adapter" in own:
            raise CheckpointError(folder, f"holds {one_line(name, 80)!r}, which is not read here", _MERGE)
        else:
            replaced[own] = tensor
    _check_layers(folder, layers)
    alpha, alphas = _number(folder, "lora_alpha", config.get("lora_alpha")), _numbers(folder, config, "alpha_pattern")
    rooted, transposed = (config.get(key) is True for key in ("use_rslora", "fan_in_fan_out"))
    base = str(config.get("base_model_name_or_path") or "")
    return Lora(folder, base, alpha, alphas, rooted, transposed, layers, replaced)


def _config(folder: Path) -> dict[str, Any]:
    """The config of an adapter that is LoRA and nothing else."""
    file = folder / ADAPTER
    if check_regular(file) > _CONFIG_BYTES:
        raise CheckpointError(file, "is a config of more than 1 MB", _AGAIN)
    config = read_json(file)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise CheckpointError(file, "does not say which kind of adapter this is (peft_type)", _AGAIN)
    if kind != "LORA":
        why = f"is an adapter of the kind {one_line(kind, 40)}; LoRA, rsLoRA and DoRA are read"
        raise CheckpointError(folder, why, _MERGE)
    _check_plain(folder, config)
    return config


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what makes more of it than the changes in its file."""
    if more := [k for k, v in config.items() if k not in _HARMLESS and v]:
        raise CheckpointError(folder, f"is a LoRA with {one_line(more[0], 60)}, which is not read here", _MERGE)
    begin = config.get("init_lora_weights")
    if isinstance(begin, str) and begin.lower().startswith(_CHANGED_BASE):
        why = f"began as {one_line(begin, 40)}, which changes the weights of its base"
        raise CheckpointError(folder, why, _MERGE)


def _own_name(folder: Path, name: str) -> str:
    if not name.startswith(_ROOT) or len(name) > _LONGEST:
        raise CheckpointError(folder, f"holds {one_line(name, 80)!r}, a name that PEFT does not write", _AGAIN)
    return name.removeprefix(_ROOT).replace(".base_layer.", ".").replace(".modules_to_save.", ".")


def _check_layers(folder: Path, layers: Mapping[str, Mapping[str, Tensor]]) -> None:
    for layer, parts in layers.items():
        shown = repr(one_line(layer, 80))
        if not {"A", "B"} <= parts.keys():
            raise CheckpointError(folder, f"holds one half of the change of {shown}", _AGAIN)
        a, b = parts["A"], parts["B"]
        if a.dim() < 2 or b.dim() < 2 or not 0 < len(a) == b.flatten(1).shape[1]:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise CheckpointError(
                folder, f"holds two halves of the change of {shown} that do not fit, {shapes}", _AGAIN
            )
        if "magnitude_vector" in parts and parts["magnitude_vector"].numel() != len(b):
            raise CheckpointError(folder, f"holds other magnitudes than the rows of {shown}", _AGAIN)
    if not layers:
        raise CheckpointError(folder, "is a LoRA without a layer that it changes", _AGAIN)


def _numbers(folder: Path, config: Mapping[str, Any], key: str) -> dict[str, float]:
    """Patterns of names with their numbers, such as search in any name ends soon."""
    held = config.get(key) or {}
    if not isinstance(held, dict) or not all(_is_pattern(pattern) for pattern in held):
        why = f"has a {key} of other patterns than names, '.*' and alternatives"
        raise CheckpointError(folder / ADAPTER, why, _MERGE)
    return {pattern: _number(folder, key, value) for pattern, value in held.items()}


def _is_pattern(text: str) -> bool:
    try:
        return len(text) <= _LONGEST and bool(_PATTERN.fullmatch(text) and re.compile(text))
    except re.error:
        return False


def _number(folder: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise CheckpointError(folder / ADAPTER, f"has no number as its {key}", _AGAIN)
    return float(value)


@dataclass(frozen=True)
class AdapterContents:
    """An adapter and the checkpoint under it, to choose merged weights from, as from ``Contents``."""

    lora: Lora
    below: Contents

    @property
    def size(self) -> int:
        """The bytes of the files, as far as they hold tensors."""
        return self.below.size + sum(v.nbytes for parts in self.lora.layers.values() for v in parts.values())

    def choose(self, key: str | None = None, like: Like | None = None) -> tuple[Params, str]:
        """The merged weights; `key` and `like` as in ``load_params``, the key in the file of the base."""
        base, note = self.below.choose(key)
        merged = self._merged(base, like)
        whole = Contents(self.lora.path, merged, sum(v.nbytes for v in merged.values()))
        params, more = whole.choose(None, like)
        self._check_ties(params, merged, like)
        return params, "; ".join(filter(None, (note, more)))

    def tensors(self) -> Params:
        """All tensors of the base that stand under names."""
        return self.below.tensors()

    def _merged(self, base: Params, like: Like | None) -> Params:
        try:
            return self.lora.onto(base)
        except CheckpointError:
            # the adapter has the names of the module, of which the base's file can have older ones
            named = translated(base, like)
            if named is None:
                raise
            return self.lora.onto(named)

    def _check_ties(self, params: Params, merged: Params, like: Like | None) -> None:
        """Refuse a change of one of two layers that share a weight in the module: the merged weight changes both."""
        for alias, name in ({} if like is None else wanted(like)[1]).items():
            both = all(any(f".{k}".endswith(f".{n}") for k in merged) for n in (alias, name))
            touched = any(f".{c}".endswith((f".{alias}", f".{name}")) for c in self.lora.changed)
            if touched and not (both and torch.equal(params[alias], params[name])):
                why = f"changes one of {one_line(alias, 60)!r} and {one_line(name, 60)!r}, which the module ties"
                raise CheckpointError(self.lora.path, why, "give a module without that tie (tie_word_embeddings=False)")
