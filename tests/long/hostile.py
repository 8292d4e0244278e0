"""Hostile values, and how a file is changed: in its bytes, or in the values of its JSON or YAML."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

HOSTILE = (
    "1" + "0" * 400, "-" + "9" * 299, "1e308", "-1e308", "9" * 5000, "[" * 3000, "[" * 3000 + "]" * 3000,
    '{"a":' * 3000,
    "NaN", "Infinity", "null", "true", "-1", "0", "0.5", '""', "[]", "{}", "5", "[5]", '"5"', '"\\ud800"',
    '"<script>"', '{"name": 5}', '["a", 1]', "9223372036854775808", '"' + "x" * 3000 + '"', "[[]]", '[null, "a"]',
)  # fmt: skip
"""What stands in the place of a value, as JSON text."""
OPTIONS = (
    "2020-99-99", "!!int abc", "[", "\ta", "[" * 3000, "9" * 400, ".nan", "-.inf", "{a: b", "&a [*a]", "!!float x",
    "? [",
    "!!python/object:os.system x", "2001-12-14t21:59:43.10-05:00", "0b", "0x", "1:99:99", "!!binary ====", "!!set {a}",
    "<<: 1", "'", "- - -", "!!timestamp 1", "*a", "%", "@", "`", "|", ">", "!", "!!bool 3", "\x00",
    "1e999", "é", "{}", "[1]",
)  # fmt: skip
"""What stands in the place of a value, as YAML text."""


# -- how files are changed


def in_bytes(data: bytes, r: random.Random) -> bytes:
    """One to three changes of bytes."""
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        at, to = sorted((r.randrange(len(out) + 1), r.randrange(len(out) + 1)))
        match r.randrange(7):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << r.randrange(8)
            case 1:
                out[at:at] = bytes(r.randrange(256) for _ in range(r.randrange(1, 9)))
            case 2:
                del out[at : at + r.randrange(1, 9)]
            case 3:
                del out[at:]
            case 4:
                out[at:at] = out[at : min(to, at + 64)]
            case 5 if out:
                out[min(at, len(out) - 1)] = r.choice(b'0\x00\xff"{}[],:-19e.')
            case _:
                out[at : at + 8] = r.choice((0, 1, 2**31, 2**63, 2**64 - 1, 10**9)).to_bytes(8, "little")
    return bytes(out)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for k, v in items:
        yield from _places(v, (*at, k))


def in_values(text: str, r: random.Random) -> str:
    """JSON with one or two values changed; a hostile one is put in as text, as no value holds it."""
    value = json.loads(text)
    marks = {}
    for i in range(r.choice((1, 1, 2))):
        at = r.choice(list(_places(value)))
        if not at:
            continue
        inner = value
        for k in at[:-1]:
            inner = inner[k]
        match r.randrange(4):
            case 0 if isinstance(inner, dict):
                inner[f"{at[-1]}x"] = inner.pop(at[-1])
            case 1:
                del inner[at[-1]]
            case _:
                inner[at[-1]] = f"@mark{i}@"
                marks[f'"@mark{i}@"'] = r.choice(HOSTILE)
    out = json.dumps(value)
    for mark, hostile in marks.items():
        out = out.replace(mark, hostile)
    return out


def json_file(data: bytes, r: random.Random) -> bytes:
    """A JSON file, in its values or its bytes."""
    return in_bytes(data, r) if r.random() < 0.3 else in_values(data.decode(), r).encode("utf-8", "surrogatepass")


def yaml_file(data: bytes, r: random.Random) -> bytes:
    """A YAML file: a value of a line, or its bytes."""
    if r.random() < 0.3:
        return in_bytes(data, r)
    lines = data.decode().splitlines()
    i = r.randrange(len(lines))
    key, colon, _ = lines[i].partition(":")
    lines[i] = f"{key}{colon} {r.choice(OPTIONS + HOSTILE)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")
