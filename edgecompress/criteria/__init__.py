"""Criteria: which weights matter least. To add one: a module, its test, one import line here."""

# Importing a criterion registers it.
from edgecompress.criteria import magnitude as magnitude
from edgecompress.criteria import taylor as taylor
from edgecompress.criteria.base import CRITERIA as CRITERIA
