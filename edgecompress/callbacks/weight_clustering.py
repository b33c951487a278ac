"""Weight clustering: the weights of a layer share few values, and training adjusts the values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.fused import fused
from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.callbacks.layer_choice import LayerChoice, choose_kernels, layer_choice
from edgecompress.callbacks.shared_values import SharedKernel, SharedValues, may_train_values
from edgecompress.core.arguments import check_whole
from edgecompress.core.errors import ArgumentError
from edgecompress.precisions.kmeans import INITIALIZATIONS, cluster


class _Clustered:
    """A clustered kernel: which weight belongs to which shared value, and the values."""

    def __init__(self, layer: str, kernel: keras.Variable, clusters: int) -> None:
        self.layer, self.kernel, self.clusters = layer, kernel, clusters
        self.size = int(np.prod(kernel.shape))
        self.error = 0.0
        self.error_base = 0.0
        self.labels: keras.Variable | None = None  # 0: a zero that stays; 1 to k: a cluster
        self.values: keras.Variable | None = None  # values[0] is 0
        self.members: keras.Variable | None = None  # How many weights have each label.

    def numpy(self) -> np.ndarray:
        return ops.convert_to_numpy(ops.cast(self.kernel, "float32"))

    def distinct(self, preserve_zeros: bool) -> np.ndarray:
        """Returns the distinct values, without a preserved zero."""
        found = np.unique(self.numpy())
        return found[found != 0] if preserve_zeros else found

    def shared(self, zeros_stay: bool) -> SharedKernel:
        """Returns its part in training the values; assigned already."""
        if self.labels is None or self.values is None:
            raise RuntimeError(f"{self.layer} has no clusters yet.")
        return SharedKernel(self.kernel, self.labels, self.values, zeros_stay)

    def count_members(self) -> None:
        """Counts the weights that have each label."""
        labels = ops.convert_to_numpy(self.labels)
        members = np.bincount(labels, minlength=self.clusters + 1).astype("float32")
        self.members.assign(members)  # type: ignore[union-attr]

    def summed(self, gradient: Any) -> Any:
        """Returns `dL/dC_k = sum of dL/dW over cluster k` in the place of every member."""
        labels = ops.convert_to_tensor(self.labels)
        sums = ops.segment_sum(
            ops.reshape(ops.cast(gradient, "float32"), (-1,)), labels, self.clusters + 1
        )
        sums = ops.where(ops.arange(self.clusters + 1) > 0, sums, 0.0)
        return ops.cast(ops.reshape(ops.take(sums, labels), self.kernel.shape), gradient.dtype)

    def share(self, preserve_zeros: bool) -> None:
        """Restores one common value per cluster: the mean of its updated members."""
        weights = ops.reshape(ops.cast(ops.convert_to_tensor(self.kernel), "float32"), (-1,))
        labels, values = ops.convert_to_tensor(self.labels), ops.convert_to_tensor(self.values)
        if preserve_zeros:
            # A weight that another callback has since set to zero leaves its cluster for good.
            left = ops.logical_and(ops.equal(weights, 0.0), labels > 0)
            labels = ops.where(left, 0, labels)
            self.labels.assign(labels)  # type: ignore[union-attr]
            known, ones = ops.convert_to_tensor(self.members), ops.ones_like(weights)
            members = ops.cond(
                ops.any(left),
                lambda: ops.segment_sum(ones, labels, self.clusters + 1),
                lambda: known,
            )
            self.members.assign(members)  # type: ignore[union-attr]
        # The mean of the changes: exact to the last bit where all members changed alike.
        changes = weights - ops.take(values, labels)
        sums = ops.segment_sum(changes, labels, self.clusters + 1)
        values = values + sums / ops.maximum(ops.convert_to_tensor(self.members), 1.0)
        values = ops.where(ops.arange(self.clusters + 1) > 0, values, 0.0)
        self.values.assign(values)  # type: ignore[union-attr]
        shared = ops.reshape(ops.take(values, labels), self.kernel.shape)
        self.kernel.assign(ops.cast(shared, self.kernel.dtype))


class WeightClustering(CompressionCallback):
    """Makes the weights of each layer share at most k values, and trains the values.

    At the start of `begin_epoch`, k-means assigns every weight of a kernel to one of k centroids.
    From then on the assignment is fixed and a training step updates the centroids C_k with

        dL/dC_k = sum over the weights W_ij of cluster k of dL/dW_ij

    (Han, Mao and Dally, Deep Compression, 2016, https://arxiv.org/abs/1510.00149, section 3.3,
    equation 3). The exact rule: before the optimizer's update, the gradient of every weight is
    replaced by the sum over its cluster; after it, each cluster takes the mean of its updated
    members. With plain SGD this is `C_k - learning_rate * dL/dC_k`. Members that have equal
    optimizer states move alike, so the optimizer moves the k values themselves where it can: where
    it updates each weight on its own (SGD, Adam, RMSprop, Adagrad, Adadelta, Adamax, Lion, without
    weight decay, clipping by norms, accumulation or averages), on one device, with nothing else
    changing the weights. A value starts with the mean of its members' states, and they get its
    state back. All this happens inside the compiled step, so `steps_per_execution` and
    `jit_compile` do not change the result.

    Summed gradients grow with the clusters: with SGD, lower the learning rate by about the number
    of weights per cluster; Adam normalizes the scale away. Gradient clipping sees the sums.

    A kernel that already holds at most k values counts as clustered from the first epoch on, so a
    second `fit`, one after `load_model`, and BackupAndRestore resume with the values and the
    assignment they find. Without the callback, a later `fit` pulls the values apart again.

    The history gains `clusters`, the largest number of distinct values in any kernel (not counting
    a preserved zero), `clusters/<layer>`, and `clustering_error`, the root of `sum (w - c(w))**2 /
    sum w**2` over all clustered weights at the time they were assigned.

    Args:
        clusters: k, 2 or more, for all layers, or a mapping layer name -> k that also chooses the
            layers. A preserved zero is extra: 15 plus zero fill 4 bits. Defaults to 16.
        initialization: Where k-means starts: `"linear"`, `"density"` or `"k-means++"`. Defaults to
            `"linear"`, the paper's most accurate.
        preserve_zeros: Whether zeros, from pruning, stay zeros. Defaults to True.
        layers: Names of the layers to cluster, or a predicate `layer -> bool`. Defaults to None:
            all Dense, EinsumDense, Conv, Conv transpose, SeparableConv (pointwise part) and
            Embedding layers; depthwise layers only if named.
        begin_epoch: Epoch, as Keras counts them, in which weights are assigned. Defaults to 0,
            for a trained model.
        seed: Of `"k-means++"`. Defaults to 0.

    Raises:
        ArgumentError: an argument breaks its rule; when training begins also if no layer is left to
            cluster or another callback clusters the same layer.
        UnknownNameError: `initialization` or a layer is unknown.
        UnsupportedModelError: when training begins, the model is subclassed.

    Example:
        >>> model.fit(x, y, epochs=3, callbacks=[WeightClustering(16)])  # doctest: +SKIP
        >>> len(np.unique(model.get_layer("dense").kernel))  # doctest: +SKIP
        16
    """

    technique = "weight_clustering"

    def __init__(
        self,
        clusters: int | Mapping[str, int] = 16,
        initialization: str = "linear",
        preserve_zeros: bool = True,
        layers: LayerChoice = None,
        begin_epoch: int = 0,
        seed: int = 0,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__()
        counts = dict(clusters) if isinstance(clusters, Mapping) else {"": clusters}
        for layer, count in counts.items():
            counts[layer] = check_whole(f"clusters[{layer!r}]" if layer else "clusters", count, 2)
        if not counts:
            raise ArgumentError("clusters", "name at least one layer", clusters)
        _ = INITIALIZATIONS[initialization]  # Refuses unknown names.
        if not isinstance(preserve_zeros, bool):
            raise ArgumentError("preserve_zeros", "be True or False", preserve_zeros)
        self.clusters = counts if isinstance(clusters, Mapping) else counts[""]
        self.initialization = initialization
        self.preserve_zeros = preserve_zeros
        self.layers = layer_choice(layers)
        self.begin_epoch = check_whole("begin_epoch", begin_epoch)
        self.seed = check_whole("seed", seed)
        self._clustered: list[_Clustered] = []
        self._active = False
        self._hook: UpdateHook | None = None
        self._trained: SharedValues | None = None
        self._new_epoch = False
        self._summed: Callable[..., list[Any]] = list
        self._shared: Callable[[], None] = lambda: None

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the clustered layers."""
        return {
            "clusters": self.clusters,
            "initialization": self.initialization,
            "preserve_zeros": self.preserve_zeros,
            "layers": [clustered.layer for clustered in self._clustered],
            "begin_epoch": self.begin_epoch,
            "seed": self.seed,
        }

    def attach(self) -> None:
        """Chooses the kernels; refuses what cannot be clustered."""
        self._active = False
        self._clustered = self._choose()

    def start_epoch(self, epoch: int) -> None:
        """Assigns the weights at the chosen epoch, or at once if they already share values."""
        if not self._active and (epoch >= self.begin_epoch or self._shared_already()):
            self._activate()
        self._new_epoch = self._active

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Chooses in each epoch, after all callbacks began it, what the optimizer moves."""
        if self._new_epoch and self._hook is not None:
            self._new_epoch = False
            with self._stage():
                self._choose_trained(self._hook)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the number of values and the error into the history."""
        counts = self._counts()
        values = {"clusters": float(max(counts.values())), "clustering_error": self._error()}
        self.log(epoch, logs, values, {f"clusters/{name}": float(n) for name, n in counts.items()})

    def settle(self) -> None:
        """Clusters weights that were replaced at the end: restored or averaged ones."""
        if not self._active:
            self.note(
                f"WeightClustering was never active: begin_epoch is {self.begin_epoch}, training "
                f"ended after epoch {self.params.get('epochs', 0) - 1}."
            )
            return
        self._sync()
        for clustered in self._clustered:
            if len(clustered.distinct(self.preserve_zeros)) <= clustered.clusters:
                continue
            start = ops.convert_to_numpy(clustered.values)[1:].astype("float64")
            self._assign(clustered, start)
            self.note(
                f"{clustered.layer} was assigned again at the end of training: its weights were "
                "replaced by restored or averaged ones with more values."
            )

    def results(self) -> Mapping[str, Any]:
        """Returns the shared values and the error of sharing."""
        books = {
            c.layer: c.distinct(self.preserve_zeros).tolist()
            for c in self._clustered
            if self._active
        }
        return {
            "codebooks": books,
            "unique_values": {c.layer: len(np.unique(c.numpy())) for c in self._clustered},
            "clustering_error": self._error(),
        }

    def detach(self) -> None:
        """Releases the model; see `HookedCallback.detach`."""
        if self._hook is not None and self._hook.attached:
            self._sync()
        self._hook = self._trained = None
        super().detach()
        self._clustered = []

    def _choose(self) -> list[_Clustered]:
        layers = self.layers
        if layers is None and isinstance(self.clusters, Mapping):
            layers = list(self.clusters)
        kernels = choose_kernels(self.model, layers, "clustered", self.note)
        return [_Clustered(k.name, k.variable, self._count(k.layer.name)) for k in kernels]

    def _count(self, layer: str) -> int:
        if not isinstance(self.clusters, Mapping):
            return self.clusters
        if layer not in self.clusters:
            raise ArgumentError(
                "clusters", f"name every layer of `layers`, {layer} too", dict(self.clusters)
            )
        return self.clusters[layer]

    def _shared_already(self) -> bool:
        """Returns whether an earlier fit has clustered the kernels: none needs k-means."""
        counts = self._counts()
        return all(
            2 <= counts[c.layer] <= c.clusters and c.size > c.clusters for c in self._clustered
        )

    def _activate(self) -> None:
        own = {id(clustered.kernel): clustered for clustered in self._clustered}
        for other in self.session.updates():
            taken = [own[id(v)].layer for v in other.assigns if id(v) in own]
            if taken and isinstance(other.owner, WeightClustering):
                raise ArgumentError(
                    "layers",
                    "not name a layer that another callback of this fit clusters",
                    taken[0],
                )
            if taken and not self.preserve_zeros:
                raise ArgumentError(
                    "preserve_zeros",
                    f"be True where another callback of this fit prunes the layer ({taken[0]})",
                    False,
                )
        kernels = [clustered.kernel for clustered in self._clustered]
        hook = self._hook = self.hook(UpdateHook(self._share, self._sum_gradients, kernels))
        hook.sync = self._sync
        self._summed = fused(self._sums, self.model, kernels)
        self._shared = fused(self._share_all, self.model, kernels)
        for clustered in self._clustered:
            clustered.labels = hook.add_variable(
                (clustered.size,), "int32", f"{clustered.layer}_cluster_labels"
            )
            clustered.values = hook.add_variable(
                (clustered.clusters + 1,), "float32", f"{clustered.layer}_cluster_values"
            )
            clustered.members = hook.add_variable(
                (clustered.clusters + 1,), "float32", f"{clustered.layer}_cluster_members"
            )
            self._assign(clustered)
        self._active = True

    def _assign(self, clustered: _Clustered, start: np.ndarray | None = None) -> None:
        """Runs k-means on the current kernel and replaces its weights by the centroids."""
        weights = clustered.numpy()
        if not np.isfinite(weights).all():
            raise ArgumentError(
                "layers", "name layers with finite weights", clustered.layer, "Did training fail?"
            )
        found = cluster(
            weights, clustered.clusters, self.initialization, self.preserve_zeros, self.seed, start
        )
        if clustered.size <= clustered.clusters:
            self.note(
                f"{clustered.layer} keeps every weight: it has {clustered.size}, no more than its "
                f"{clustered.clusters} clusters."
            )
        if not len(found.centroids):
            self.note(f"{clustered.layer} holds only zeros, which stay as they are.")
        values = np.zeros(clustered.clusters + 1, "float32")
        values[1 : len(found.centroids) + 1] = found.centroids
        labels = (found.labels + 1).astype("int32")
        clustered.labels.assign(labels.ravel())  # type: ignore[union-attr]
        clustered.values.assign(values)  # type: ignore[union-attr]
        clustered.count_members()
        clustered.kernel.assign(values[labels])
        clustered.error_base = float(np.sum(np.float64(weights) ** 2))
        clustered.error = found.error**2 * clustered.error_base

    def _choose_trained(self, hook: UpdateHook) -> None:
        """Lets the optimizer move the values where that is the same, all weights elsewhere."""
        shared = [c.shared(self.preserve_zeros) for c in self._clustered]
        others = self.session.updates(hook)
        if may_train_values(self.model, hook, others, shared):
            if self._trained is not None:
                self._trained.read()
                return
            self._trained = SharedValues(self.model, hook, shared)
            hook.updates = tuple(clustered.kernel for clustered in self._clustered)
            self.session.trace(always=True)
        elif self._trained is not None:
            self._sync()
            self._trained, hook.updates = None, ()
            for clustered in self._clustered:
                clustered.count_members()
            self.session.trace(always=True)

    def _sync(self) -> None:
        """Brings the labels' values and the optimizer's states up to date."""
        if self._trained is not None:
            self._trained.write()

    def _sum_gradients(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Replaces the gradients of clustered weights; part of the compiled step."""
        places = {id(variable): place for place, variable in enumerate(variables)}
        found = [
            gradients[places[id(c.kernel)]] if id(c.kernel) in places else None
            for c in self._clustered
        ]
        # Embeddings have sparse gradients.
        dense = [
            ops.zeros_like(c.kernel) if gradient is None else ops.convert_to_tensor(gradient)
            for gradient, c in zip(found, self._clustered, strict=True)
        ]
        if self._trained is not None:
            self._trained.update(dense)
            return gradients
        gradients = list(gradients)
        for old, new, c in zip(found, self._summed(dense), self._clustered, strict=True):
            if old is not None:
                gradients[places[id(c.kernel)]] = new
        return gradients

    def _sums(self, gradients: list[Any]) -> list[Any]:
        return [c.summed(g) for c, g in zip(self._clustered, gradients, strict=True)]

    def _share(self) -> None:
        """Restores one shared value per cluster after an update; part of the compiled step."""
        if self._trained is None:
            self._shared()

    def _share_all(self) -> None:
        for clustered in self._clustered:
            clustered.share(self.preserve_zeros)

    def _counts(self) -> dict[str, int]:
        return {c.layer: len(c.distinct(self.preserve_zeros)) for c in self._clustered}

    def _error(self) -> float:
        base = sum(clustered.error_base for clustered in self._clustered)
        return (sum(c.error for c in self._clustered) / base) ** 0.5 if base else 0.0
