"""External packages that add to the registries: entry points in `edgecompress.plugins`.

A package names a module in its `pyproject.toml`:

    [project.entry-points."edgecompress.plugins"]
    my-criterion = "my_package.my_criterion"

The module is imported when a registry is first read, and registers its entries. It is code of an
installed package, and as trusted as any other.
"""

from __future__ import annotations

import importlib
import threading

from edgecompress.core.errors import EdgeCompressError

GROUP = "edgecompress.plugins"

_lock = threading.RLock()
_loaded: list[str] = []
_state = {"begun": False}


class PluginError(EdgeCompressError):
    """An installed plugin cannot be imported; the text names its package."""


def load_plugins() -> tuple[str, ...]:
    """Imports every installed plugin, once per process.

    Returns:
        The names of the entry points.

    Raises:
        PluginError: a plugin cannot be imported, or registers a name that is taken. Every later
            call raises it again: a build must not continue without its plugins.
    """
    with _lock:
        if _state["begun"]:
            return tuple(_loaded)
        # Set first, as a plugin itself reads the registries while it is imported.
        _state["begun"] = True
        try:
            _load_all()
        except BaseException:
            _state["begun"] = False
            raise
        return tuple(_loaded)


def _load_all() -> None:
    from importlib.metadata import entry_points

    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name in _loaded:
            continue
        try:
            importlib.import_module(point.module)
        # An external module may raise anything, and end the program.
        except (Exception, SystemExit) as error:
            package = point.dist.name if point.dist is not None else "a package"
            raise PluginError(
                f"The plugin {point.name} of {package} cannot be used: {type(error).__name__}: "
                f"{error}. Repair or uninstall {package}."
            ) from error
        _loaded.append(point.name)
