"""Penn Treebank as word numbers: where its files are looked for, the vocabulary, the sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from isthmus.errors import FileError, InputError

_PARTS = ("train", "test")
UNKNOWN, END = "<unk>", "<eos>"
_LARGEST = 64 * 2**20
"""More bytes than this in one file are refused: the files have 5 MB and 0.5 MB."""


def find_text(folders: Sequence[Path]) -> tuple[list[list[str]], str]:
    """The words of ptb.train.txt and ptb.test.txt, ``<eos>`` after every line, and their folder.

    Looked for in every folder and in its subfolder ptb; nothing is downloaded. Errors: ``FileError`` where they are
    not, naming every place, and for a file that cannot be read as words.
    """
    looked = []
    for folder in (place for root in folders for place in (root / "ptb", root)):
        files = [folder / f"ptb.{part}.txt" for part in _PARTS]
        looked.append(str(files[0]))
        missing = [f.name for f in files if not f.is_file()]
        if not missing:
            return [_words(f) for f in files], str(folder)
        if len(missing) < len(files):
            raise FileError(folder, f"holds part of ptb; missing: {', '.join(missing)}")
    raise FileError(
        "ptb",
        "no copy of this data set on this machine; looked for " + ", ".join(looked),
        "put ptb.train.txt and ptb.test.txt (Mikolov's version of Penn Treebank) into one of these folders, "
        "or set ISTHMUS_DATA to the folder that holds them",
    )


def _words(file: Path) -> list[str]:
    try:
        if file.stat().st_size > _LARGEST:
            raise FileError(file, f"has more than the limit of {_LARGEST:,} bytes")
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise FileError(file, f"cannot be read as text ({exc})") from exc
    words = [word for line in lines for word in (*line.split(), END)]
    if len(words) < 2:
        raise FileError(file, "holds no words")
    return words


def vocabulary(words: Sequence[str], size: int) -> dict[str, int]:
    """Numbers 0 .. size - 1 for the most frequent words, most frequent first, always with ``<unk>`` among them.

    Words of equal frequency in the order of the alphabet. A text of fewer words has a smaller vocabulary.

    >>> vocabulary(["b", "a", "b", "c"], 3)
    {'b': 0, 'a': 1, '<unk>': 2}
    """
    if size < 2:
        raise InputError("vocabulary", expected="at least 2 words", got=size)
    counts = Counter(words)
    ranked = sorted(counts, key=lambda w: (-counts[w], w))[:size]
    if UNKNOWN not in ranked:
        ranked = [*ranked[: size - 1], UNKNOWN]
    return {word: i for i, word in enumerate(ranked)}


def sequences(words: Sequence[str], numbers: dict[str, int], length: int) -> tuple[Tensor, Tensor]:
    """x [n, T] and y [n, T]: the text cut into n sequences of T words, and the word that follows each of them.

    Words outside the vocabulary count as ``<unk>``; what is left over at the end of the text is not used.

    >>> sequences("a b a c d".split(), {"a": 0, "b": 1, "<unk>": 2}, 2)
    (tensor([[0, 1],
            [0, 2]]), tensor([[1, 0],
            [2, 2]]))
    """
    n = (len(words) - 1) // length
    if n < 1:
        raise InputError("T", expected=f"at most {len(words) - 1}, the words of the text less one", got=length)
    unknown = numbers[UNKNOWN]
    stream = torch.tensor([numbers.get(word, unknown) for word in words[: n * length + 1]])
    return stream[:-1].reshape(n, length).clone(), stream[1:].reshape(n, length).clone()
