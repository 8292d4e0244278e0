"""Recurrent language models: the next word from those before it."""

from __future__ import annotations

from torch import Tensor, nn

from isthmus.errors import InputError

_START = 0.1
"""All weights start from the uniform distribution on [-_START, _START] (Zaremba et al. 2014, small)."""


class LanguageModel(nn.Module):
    """Embedding, `layers` LSTM layers of `width` units, and one linear layer on `vocabulary` words.

    Input: word numbers [batch, T], int64; every sequence starts from the zero state. Output: [batch, vocabulary, T],
    the scores of the next word at every position, classes on axis 1 as in torch's cross entropy. ``exp(loss)`` of the
    cross entropy is the perplexity. Errors: a size below 1.

    Source: Zaremba, Sutskever and Vinyals 2014; Freeman and Bruna 2017, section 4.3 (two layers of 200 units).

    >>> import torch
    >>> model = LanguageModel(50, width=8)
    >>> model(torch.zeros(3, 5, dtype=torch.int64)).shape
    torch.Size([3, 50, 5])
    """

    def __init__(self, vocabulary: int, width: int = 200, layers: int = 2) -> None:
        super().__init__()
        for what, value in (("vocabulary", vocabulary), ("width", width), ("layers", layers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(what, expected="a whole number >= 1", got=repr(value))
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.output = nn.Linear(width, vocabulary)
        for p in self.parameters():
            nn.init.uniform_(p, -_START, _START)

    def forward(self, words: Tensor) -> Tensor:
        """The scores of the next words."""
        hidden, _ = self.lstm(self.embedding(words))
        return self.output(hidden).transpose(1, 2)
