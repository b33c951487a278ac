"""Losses of training with a teacher. To add one: a module, its test, one import line here."""

# Importing a loss registers it.
from edgecompress.training import distillation as distillation
from edgecompress.training.base import LOSSES as LOSSES
