"""Precisions: number formats. To add one: a module, its test, one import line here."""

# Importing a precision registers it. They import Keras where they compute, so that the names are
# known without it.
from edgecompress.precisions import int8 as int8
from edgecompress.precisions.base import PRECISIONS as PRECISIONS
