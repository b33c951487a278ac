"""Surgery: a Keras model in, a smaller one out. To add one: a module, its test, one import line."""

# Importing a rewrite registers it.
from edgecompress.surgery import remove_channels as remove_channels
from edgecompress.surgery.rewrites import REWRITES as REWRITES
