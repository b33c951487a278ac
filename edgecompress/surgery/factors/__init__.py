"""Factorizations of kernels. To add one: a module, its test, one import line here."""

# Importing a factorization registers it.
from edgecompress.surgery.factors import channels as channels
from edgecompress.surgery.factors import cp as cp
from edgecompress.surgery.factors import spatial as spatial
from edgecompress.surgery.factors import tucker as tucker
from edgecompress.surgery.factors.base import FACTORIZATIONS as FACTORIZATIONS
