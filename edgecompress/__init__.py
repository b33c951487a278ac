"""Train Keras models smaller and export them to .tflite files that fit their devices.

Public names load on first use: importing this package costs no TensorFlow and no Keras.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module that defines it.
_PUBLIC = {
    "ConstantSparsity": "edgecompress.schedules.constant",
    "CustomSchedule": "edgecompress.schedules.custom",
    "IterativeSparsity": "edgecompress.schedules.iterative",
    "OneShotSparsity": "edgecompress.schedules.one_shot",
    "PolynomialDecay": "edgecompress.schedules.polynomial",
    "Pruning": "edgecompress.callbacks.pruning",
    "MagnitudePruning": "edgecompress.callbacks.magnitude_pruning",
    "Budget": "edgecompress.costs.budget",
    "ChannelPruning": "edgecompress.callbacks.channel_pruning",
    "KeepSparsity": "edgecompress.callbacks.keep_sparsity",
    "GroupLasso": "edgecompress.callbacks.group_lasso",
    "Distillation": "edgecompress.callbacks.distillation",
    "Specialist": "edgecompress.training.specialists",
    "TeacherOutputs": "edgecompress.training.teacher_outputs",
    "confusable_classes": "edgecompress.training.specialists",
    "specialist_samples": "edgecompress.training.specialists",
    "QuantizationAwareTraining": "edgecompress.callbacks.quantization_aware_training",
    "WeightClustering": "edgecompress.callbacks.weight_clustering",
    "Binarize": "edgecompress.callbacks.binarize",
    "Ternarize": "edgecompress.callbacks.ternarize",
    "VariationalDropout": "edgecompress.callbacks.variational_dropout",
    "BayesianGroupSparsity": "edgecompress.callbacks.bayesian_group_sparsity",
    "VariationalQuantization": "edgecompress.callbacks.variational_quantization",
    "SoftWeightSharing": "edgecompress.callbacks.soft_weight_sharing",
    "FixedPointTraining": "edgecompress.callbacks.fixed_point_training",
    "PatternBinarization": "edgecompress.callbacks.pattern_binarization",
    "FastGroupedConvolutions": "edgecompress.callbacks.fast_grouped_convolutions",
    "PatternResidualBlock": "edgecompress.layers.sepnet",
    "SEPNetModule": "edgecompress.layers.sepnet",
    "sepnet": "edgecompress.layers.sepnet",
    "Int8": "edgecompress.precisions.int8",
    "DynamicRange": "edgecompress.precisions.weights_only",
    "Float16": "edgecompress.precisions.weights_only",
    "Int2": "edgecompress.precisions.int2",
    "Int4": "edgecompress.precisions.int4",
    "Int16x8": "edgecompress.precisions.int16x8",
    "BinaryConv2D": "edgecompress.layers.binary",
    "BinaryDense": "edgecompress.layers.binary",
    "quantize": "edgecompress.post_training.quantize",
    "simulate": "edgecompress.simulation",
    "finalize": "edgecompress.surgery.finalize",
    "low_rank": "edgecompress.surgery.low_rank_budget",
    "merge_neurons": "edgecompress.surgery.merge_neurons",
    "merge_curves": "edgecompress.surgery.merge_neurons",
    "savings": "edgecompress.inspection.savings",
    "plot_importance": "edgecompress.reports.importance",
    "fresh_copy": "edgecompress.baselines.fresh_copy",
    "thinner_copy": "edgecompress.baselines.thinner_copy",
    "lottery_ticket": "edgecompress.baselines.lottery_ticket",
    "load_model": "edgecompress.core.record",
    "export": "edgecompress.pipeline",
    "check": "edgecompress.pipeline",
    "bench": "edgecompress.pipeline",
    "build_app": "edgecompress.pipeline",
    "install_app": "edgecompress.pipeline",
    "compress": "edgecompress.recipes",
    "compare": "edgecompress.comparison",
    "search": "edgecompress.searching",
    "CompressionRecord": "edgecompress.core.record",
    "EdgeCompressError": "edgecompress.core.errors",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    """Loads a public name from its module when it is first asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("edgecompress")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgecompress' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def module_of(name: str) -> str:
    """Returns the module that defines a public name."""
    return _PUBLIC.get(name, __name__)


def __dir__() -> list[str]:
    """Lists the public names."""
    return __all__
