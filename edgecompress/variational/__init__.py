"""Priors and posteriors of weights: divergences, moments and precisions, apart from any callback.

A posterior is `q(w) = N(mean, exp(log_variance))` for each weight; its divergence from a prior is
what training pays, in nats. All functions take tensors of any Keras backend.
"""
