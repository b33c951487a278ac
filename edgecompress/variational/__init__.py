"""Priors and posteriors of weights: divergences, moments and precisions, apart from any callback.

A posterior is `q(w) = N(mean, exp(log_variance))` for each weight; its divergence from a prior is
what training pays, in nats. All functions take tensors of any Keras backend.
"""

# Importing a group prior registers it.
from edgecompress.variational import group_horseshoe as group_horseshoe
from edgecompress.variational import normal_jeffreys as normal_jeffreys
from edgecompress.variational.group_prior import GROUP_PRIORS as GROUP_PRIORS
