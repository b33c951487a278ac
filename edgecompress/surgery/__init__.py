"""Surgery: Keras model in, smaller model out. To add a rewrite: a module, its test, one import."""

# Importing a rewrite registers it.
from edgecompress.surgery import cheaper_blocks as cheaper_blocks
from edgecompress.surgery import low_rank as low_rank
from edgecompress.surgery import remove_branches as remove_branches
from edgecompress.surgery import remove_channels as remove_channels
from edgecompress.surgery.rewrites import REWRITES as REWRITES
