"""Weights under the names of a module of Hugging Face's transformers, whose files keep older names and shapes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from isthmus.params import Params
from isthmus.program.adapted import Adapted

__all__ = ["quietly", "translated"]

_LIBRARY = "transformers.modeling_utils"


def translated(state: Mapping[str, Tensor], like: Any) -> Params | None:
    """What `state` holds of `like`, renamed and joined as ``transformers`` does when it reads such a file.

    ``None`` where `like` is no module of that library, or the library finds nothing in `state`. A name that it does
    not find is missing in the result.
    """
    found = _of_library(like)
    if found is None:
        return None
    prefix, module = found
    with quietly():
        try:
            read, info = type(module).from_pretrained(
                None, config=module.config, state_dict=dict(state), output_loading_info=True
            )
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            return None  # the library's own word on weights of another network; the caller has a better one
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return {prefix + k: v for k, v in read.state_dict().items() if k not in missing} or None


def _of_library(like: Any) -> tuple[str, Any] | None:
    """The module of the library that `like` is or wraps, with what stands before its names."""
    base = getattr(sys.modules.get(_LIBRARY), "PreTrainedModel", None)
    module = getattr(like, "skeleton", like)
    if base is None or not isinstance(module, nn.Module):
        return None
    module = module.own if isinstance(module, Adapted) else module
    parts = [(name, part) for name, part in module.named_modules() if isinstance(part, base)]
    return next(((f"{name}." if name else "", part) for name, part in parts), None)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's progress bars and reports, once it is imported: what is missing, the caller says."""
    log: Any = sys.modules["transformers.utils.logging"]
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
