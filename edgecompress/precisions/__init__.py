"""Precisions: number formats. To add one: a module, its test, one import line here."""

# Importing a precision registers it. They import Keras only where they compute, so that the names
# are available without it.
from edgecompress.precisions import int2 as int2
from edgecompress.precisions import int4 as int4
from edgecompress.precisions import int8 as int8
from edgecompress.precisions import int16x8 as int16x8
from edgecompress.precisions import weights_only as weights_only
from edgecompress.precisions.base import PRECISIONS as PRECISIONS
