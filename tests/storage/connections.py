"""Connections to save, how to compare them bit for bit, and files that only a hostile writer would make."""

import json

import torch

from isthmus.connectors.base import Connection, Outcome
from isthmus.paths import Curve, Path
from isthmus.storage import paths as saved
from isthmus.storage import read_tensors, save_tensors
from isthmus.storage.tensors import _bytes, combine, digest_of

STATS = {"method": {"name": "Linear"}, "seed": 3, "segments": ["straight"], "x": [0.1, 1e-320, -0.0, None, True, "ä"]}


def params(seed, dtype=torch.float32, width=8):
    g = torch.Generator().manual_seed(seed)
    return {
        "0.weight": torch.randn(width, 5, generator=g, dtype=dtype),
        "0.bias": torch.zeros(width, dtype=dtype),
        "1.running_mean": torch.zeros(width, dtype=dtype),
        "1.num_batches_tracked": torch.tensor(seed),
        "2.weight": torch.randn(3, width, generator=g, dtype=torch.float64),
    }


def connection(seed=0, dtype=torch.float32, outcome=Outcome.CONSTRUCTED):
    """A line, a Bezier curve of four control points, a line that moves one tensor; the target is not the end."""
    p = [params(seed + i, dtype) for i in range(5)]
    p.append({**p[4], "0.weight": p[0]["0.weight"]})
    path = Path((Curve((p[0], p[1])), Curve(tuple(p[1:5])), Curve((p[4], p[5]))))
    return Connection(path, params(seed + 9, dtype), outcome, STATS)


def bits(params):
    return [(k, v.dtype, tuple(v.shape), bytes(_bytes(v))) for k, v in params.items()]


def same(x, y):
    """Equal bit for bit, in everything that a connection holds."""
    return (
        len(x.path) == len(y.path)
        and all(type(s) is type(t) for s, t in zip(x.path.segments, y.path.segments, strict=True))
        and all(bits(x.path.at(i / 12)) == bits(y.path.at(i / 12)) for i in range(13))
        and bits(x.target) == bits(y.target)
        and x.outcome is y.outcome
        and repr(x.stats) == repr(y.stats)
    )


def forge(file, change, version=1):
    """Rewrite the manifest of a saved file, with a right digest: what only a hostile writer would do."""
    tensors, metadata = read_tensors(file)
    manifest = json.loads(json.loads(metadata["isthmus"])["manifest"])
    change(manifest, tensors)
    text = json.dumps(manifest)
    digests = combine({k: digest_of(v) for k, v in tensors.items()})
    header = {"format": "isthmus connection", "version": version, "tensors": digests, "manifest": text}
    save_tensors(
        tensors,
        file,
        {"isthmus": json.dumps({**header, "digest": saved._seal(version if version < 3 else 1, digests, text)})},
    )
