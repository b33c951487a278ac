"""The registry class for everything that can be added by name, also by external packages."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from edgecompress.core.errors import UnknownNameError
from edgecompress.core.plugins import load_plugins

T = TypeVar("T")

_lock = threading.RLock()


class Registry(Mapping[str, T], Generic[T]):
    """Maps names to objects; refuses duplicate names, and suggests neighbours of unknown ones.

    Reading it loads the installed plugins (`core.plugins`), which may register more.

    Args:
        argument: The argument that takes the name, for error messages, e.g. `--target`.
        home: Module whose import registers the built-in entries; imported when the registry is
            first read. Defaults to none: they are there before anybody can read it.

    Example:
        >>> schedules = Registry("schedule")
        >>> @schedules.register("constant")
        ... def constant(step): return 0.5
        >>> schedules["constant"](3)
        0.5
    """

    def __init__(self, argument: str, home: str = "") -> None:
        self._argument = argument
        self._home = home
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that stores its object under `name`.

        Raises:
            ValueError: `name` is taken by another object.
        """

        def store(entry: T) -> T:
            if name in self._entries:
                raise ValueError(
                    f"{self._argument} {name!r} is registered twice: "
                    f"{self._entries[name]!r} and {entry!r}."
                )
            self._entries[name] = entry
            return entry

        return store

    def __getitem__(self, name: str) -> T:
        """Returns the object stored under `name`; raises UnknownNameError for an unknown one."""
        self._load()
        try:
            return self._entries[name]
        except (KeyError, TypeError):  # A list has no hash.
            raise UnknownNameError(self._argument, name, self._entries) from None

    def __contains__(self, name: object) -> bool:
        """Returns whether `name` is registered (Mapping's own version expects a KeyError)."""
        self._load()
        return name in self._entries

    def get(self, name: str, default: T | None = None) -> T | None:  # type: ignore[override]
        """Returns the object stored under `name`, or `default`."""
        self._load()
        return self._entries.get(name, default)

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names in the order of registration."""
        self._load()
        return iter(self._entries)

    def __len__(self) -> int:
        """Returns the number of entries."""
        self._load()
        return len(self._entries)

    def _load(self) -> None:
        # Another thread waits for the built-in entries instead of reading a part of them.
        with _lock:
            home, self._home = self._home, ""
            try:
                if home:
                    importlib.import_module(home)
            except BaseException:
                self._home = home
                raise
        load_plugins()
