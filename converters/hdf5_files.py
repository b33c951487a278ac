"""What an HDF5 file may contain, before Keras reads weights from it.

HDF5 can store a dataset's bytes in any other file on the machine (external storage, external links,
virtual datasets), decode them with plugins, and declare sizes that it does not store. Keras files
do none of this, so all of it is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgecompress.core.errors import ModelFileError
from edgecompress.core.reading import check_inflated, file_size

# Filters that are part of every HDF5 library: gzip, shuffle, fletcher32, scale-offset.
_FILTERS = frozenset({1, 2, 3, 6})
_MOST_OBJECTS = 1_000_000
# The best gzip can do on zeros; a higher ratio is not compression.
_MOST_EXPANSION = 1100


def refuse_plugins() -> None:
    """Keeps the HDF5 library of this process from loading filters from other files."""
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"


def check(path: Path, shown: Path) -> None:
    """Refuses a file whose datasets reach outside it, or claim more than it can hold.

    Args:
        path: The HDF5 file.
        shown: The file it comes from, which messages name and whose size counts.

    Raises:
        ModelFileError: an object of the file is of such a kind; its name is in the text.
        UnreadableFileError: all datasets together claim more than 512 MiB and 16 times the file's
            size.
    """
    import h5py

    refuse_plugins()
    try:
        with h5py.File(path, "r") as file:
            claimed = _check_group(file.id, shown)
        check_inflated(claimed, file_size(shown), shown)
    except ModelFileError:
        raise
    # Damage surfaces as one of many HDF5 exceptions.
    except Exception as error:
        text = " ".join(str(error).split())[:240]
        raise ModelFileError(
            f"{shown} is truncated or damaged ({text}). Save or download it again."
        ) from error


def _check_group(root: Any, shown: Path) -> int:
    """Walks all hard links of a file, without following any other; returns the bytes claimed."""
    from h5py import h5d, h5g, h5o

    waiting: list[tuple[Any, str]] = [(root, "")]
    seen: set[Any] = set()
    claimed = 0
    while waiting:
        group, place = waiting.pop()
        for name in group:
            text = name.decode("utf-8", "replace")
            where = f"{place}/{text}"
            if group.links.get_info(name).type != 0:  # H5L_TYPE_HARD
                raise _outside(shown, where, "is a link to another place or file")
            found = h5o.open(group, name)
            key = h5o.get_info(found)
            key = (key.fileno, key.addr)
            if key in seen:
                continue
            seen.add(key)
            if len(seen) > _MOST_OBJECTS:
                raise ModelFileError(f"{shown} holds more than {_MOST_OBJECTS:,} objects.")
            if isinstance(found, h5g.GroupID):
                waiting.append((found, where))
            elif isinstance(found, h5d.DatasetID):
                claimed += _check_dataset(found, where, shown)
    return claimed


def _check_dataset(dataset: Any, where: str, shown: Path) -> int:
    """Returns the bytes that a sound dataset takes once it is read."""
    from h5py import h5d, h5t

    plan = dataset.get_create_plist()
    if plan.get_external_count():
        raise _outside(shown, where, "keeps its values in another file")
    layout = plan.get_layout()
    if layout == h5d.VIRTUAL:
        raise _outside(shown, where, "takes its values from other datasets")
    for number in range(plan.get_nfilters()):
        if plan.get_filter(number)[0] not in _FILTERS:
            raise _outside(shown, where, "needs a plugin to be decoded")
    kind = dataset.get_type()
    # Opaque bytes are what bfloat16 is stored as. Text of any length is a reference, and many of
    # them may share one text.
    plain = (h5t.INTEGER, h5t.FLOAT, h5t.ENUM, h5t.OPAQUE, h5t.STRING)
    is_text = kind.get_class() == h5t.STRING
    if kind.get_class() not in plain or (is_text and kind.is_variable_str()):
        raise _outside(shown, where, "holds references or records instead of values")
    elements = dataset.get_space().get_simple_extent_npoints()
    size = int(elements) * int(kind.get_size())
    # Unwritten data has no storage, and is read as any number of zeros.
    stored = int(dataset.get_storage_size())
    if size > stored * (_MOST_EXPANSION if plan.get_nfilters() else 1):
        raise ModelFileError(
            f"{shown} is damaged: {where} claims {size:,} bytes and stores {stored:,}."
        )
    return size


def _outside(shown: Path, where: str, what: str) -> ModelFileError:
    return ModelFileError(
        f"{shown} is refused: {where} {what}. Save the model again with model.save()."
    )
