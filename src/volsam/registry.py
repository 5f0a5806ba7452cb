"""Names a user may type, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from volsam.errors import BadInput

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """A dictionary of named things that answers an unknown name with the known ones."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, Item] = {}

    def add(self, name: str, item: Item) -> Item:
        """Register `item`; a name is taken once."""
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self._items[name] = item
        return item

    def named(self, name: str) -> Callable[[Item], Item]:
        """Decorate a definition with the name that users type."""
        return lambda item: self.add(name, item)

    def __getitem__(self, name: str) -> Item:
        if name in self._items:
            return self._items[name]
        near = get_close_matches(name, self._items, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(self._items))}"
        raise BadInput(f"no {self.kind} is called {name!r}; {hint}")

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
