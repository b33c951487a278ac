"""Post-training quantization. To add a technique: a module, its test, one import line here."""

# Importing a technique registers it.
from edgecompress.post_training import adaround as adaround
from edgecompress.post_training import bias_correction as bias_correction
from edgecompress.post_training import equalization as equalization
from edgecompress.post_training import gptq as gptq
from edgecompress.post_training.techniques import TECHNIQUES as TECHNIQUES
