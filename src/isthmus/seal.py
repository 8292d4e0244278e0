"""The digest of a document among its entries: whether anything in it was changed since it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "isthmus.seal"
"""The entry that holds the digest of the others."""


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document, of JSON values, with the digest of its entries."""
    text = json.dumps(document, sort_keys=True)
    return {**document, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def is_changed(document: Mapping[str, Any]) -> bool:
    """Whether the entries are others than those of which ``sealed`` made the digest; False where there is none.

    >>> is_changed(sealed({"a": 1})), is_changed(sealed({"a": 1}) | {"a": 2}), is_changed({"a": 1})
    (False, True, False)
    """
    return SEAL in document and not is_whole(document)


def is_whole(document: Mapping[str, Any]) -> bool:
    """Whether it holds the digest of its entries, as what ``sealed`` made does.

    >>> is_whole(sealed({"a": 1})), is_whole(sealed({"a": 1}) | {"a": 2}), is_whole({"a": 1})
    (True, False, False)
    """
    return document == sealed({k: v for k, v in document.items() if k != SEAL})
