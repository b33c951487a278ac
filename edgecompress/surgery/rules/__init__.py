"""How each family of layers moves channels, and how it is cut: one small class each."""

# Importing a module registers its rules.
from edgecompress.surgery.rules import channelwise as channelwise
from edgecompress.surgery.rules import mixing as mixing
from edgecompress.surgery.rules import moving as moving
from edgecompress.surgery.rules import sequences as sequences
from edgecompress.surgery.rules import statistics as statistics
from edgecompress.surgery.rules.base import RULES as RULES
from edgecompress.surgery.rules.base import Producer as Producer
from edgecompress.surgery.rules.base import Rule as Rule
from edgecompress.surgery.rules.base import filters_of as filters_of
from edgecompress.surgery.rules.base import producers_of as producers_of
from edgecompress.surgery.rules.base import rule_of as rule_of
