"""A bounded memory of a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values that were used recently. When the newer half is full, the older one is forgotten: a client that invents keys replaces unused values.

    `half()` is the size of a half, and `size_of(value)` that of a value, 1 by default.
    """

    def __init__(self, half: Callable[[], float], size_of: Callable[[Value], float] = lambda _: 1) -> None:
        self._half, self._size_of = half, size_of
        self.forget()

    def forget(self) -> None:
        """Forget all values."""
        self.newer: dict[Key, Value] = {}
        self.older: dict[Key, Value] = {}
        self._size = 0.0

    def get(self, key: Key) -> Value | None:
        """Return the value of a key. One from the older half becomes one of the newer."""
        value = self.newer.get(key)
        if value is None and (value := self.older.get(key)) is not None:
            self.keep(key, value)
        return value

    def keep(self, key: Key, value: Value) -> None:
        """Keep a value, unless it is larger than a half."""
        size, half = self._size_of(value), self._half()
        if (known := self.newer.pop(key, None)) is not None:
            self._size -= self._size_of(known)
        if self._size + size > half:
            self.newer, self.older, self._size = {}, self.newer, 0.0
        if size <= half:
            self.newer[key] = value
            self._size += size
