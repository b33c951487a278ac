"""The rules; importing this package registers the built-in ones, in the order of reports."""

from edgecompress.targets.rules import file_size

from edgecompress.targets.rules import by_family  # isort: skip
from edgecompress.targets.rules import energy  # isort: skip

__all__ = ["by_family", "energy", "file_size"]
