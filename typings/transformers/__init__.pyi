# What pyright is told of transformers: nothing. To read its files takes a third of the time of the whole check.
from typing import Any

def __getattr__(name: str) -> Any: ...
