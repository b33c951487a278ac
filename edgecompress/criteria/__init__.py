"""Criteria: which weights matter least. To add one: a module, its test, one import line here."""

# Importing a criterion registers it.
from edgecompress.criteria import activation as activation
from edgecompress.criteria import fisher as fisher
from edgecompress.criteria import gate_sensitivity as gate_sensitivity
from edgecompress.criteria import geometric_median as geometric_median
from edgecompress.criteria import layer_adaptive as layer_adaptive
from edgecompress.criteria import magnitude as magnitude
from edgecompress.criteria import norm_scale as norm_scale
from edgecompress.criteria import optimal_brain_damage as optimal_brain_damage
from edgecompress.criteria import random as random
from edgecompress.criteria import taylor as taylor
from edgecompress.criteria import weight_change as weight_change
from edgecompress.criteria.base import CRITERIA as CRITERIA
