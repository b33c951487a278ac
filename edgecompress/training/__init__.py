"""Losses of training with a teacher. To add one: a module, its test, one import line here."""

# Importing a loss registers it.
from edgecompress.training import attention_transfer as attention_transfer
from edgecompress.training import distillation as distillation
from edgecompress.training import hints as hints
from edgecompress.training import logits as logits
from edgecompress.training.base import LAYER_LOSSES as LAYER_LOSSES
from edgecompress.training.base import LOSSES as LOSSES
