"""Counts that hold nothing of what they have none of."""

from collections import Counter
from typing import TypeVar

Key = TypeVar("Key")


def add(counts: Counter[Key], key: Key, change: int) -> None:
    """Change a count; one of none is forgotten."""
    if count := counts[key] + change:
        counts[key] = count
    else:
        counts.pop(key, None)
