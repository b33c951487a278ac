"""Changing .tflite files: one editor that unpacks a file once and packs it once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.packing import pack, unpack
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.sparse_tensors import Level, Sparsity, index_bytes

Names = Literal["interface", "computed", "all"]


class ModelEditor:
    """Adds, replaces, retypes, removes and orders the tensors and operators of a file.

    All methods except `rename` and `strip` change the first subgraph. Tensors have indices, which
    are stable until `drop_unused`; operators are handles: those of the file are in `operators`, new
    ones come from `new_operator`. Equal edits of equal files give equal bytes.

    Args:
        model: The file: bytes, or parsed; it is not modified.

    Attributes:
        original: The file before any change, read.
        operators: The file's operators in order of execution.

    Example:
        >>> editor = ModelEditor(data)  # doctest: +SKIP
        >>> editor.replace(2, np.zeros(8, np.int32))  # doctest: +SKIP
        >>> smaller = editor.pack()  # doctest: +SKIP
    """

    def __init__(self, model: FlatModel | bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self.original = read_tflite(model)
        self._tree = unpack(self.original)
        self._graph = self._tree.subgraphs[0]
        self.operators: tuple[Any, ...] = tuple(self._graph.operators)
        self._places = {id(operator): [operator] for operator in self.operators}
        self._readers = Counter(int(i) for o in self.operators for i in _listed(o.inputs))

    # --- Tensors ----------------------------------------------------------------------------------

    def add(
        self,
        shape: Sequence[int] | np.ndarray,
        kind: str,
        values: bytes | np.ndarray | None = None,
        has_rank: bool = False,
        name: str | None = None,
        variable: bool = False,
    ) -> int:
        """Adds a tensor.

        Args:
            shape: Equal arrays are stored once in the file, a list each time.
            kind: `INT8`, ... as in the schema.
            values: Of a constant. Defaults to None: the tensor is computed.
            has_rank: The flag that the rank is known, which tells scalars from unknown shapes.
                Defaults to False.
            name: Its name. Defaults to none.
            variable: Whether it keeps its value between inferences. Defaults to False.

        Returns:
            Its number.
        """
        shape = shape if isinstance(shape, np.ndarray) else list(shape)
        tensor = self._schema.TensorT(
            shape=shape,
            type=getattr(self._schema.TensorType, kind),
            hasRank=has_rank,
            name=name,
            isVariable=variable,
        )
        tensor.buffer = 0 if values is None else self._buffer(values)
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def copy(self, tensor: int) -> int:
        """Adds a copy of a tensor and returns its number."""
        made = copy.copy(self._graph.tensors[tensor])
        made.quantization = copy.copy(made.quantization)
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def replace(self, tensor: int, values: bytes | np.ndarray | None) -> None:
        """Gives a tensor its own values; with None it becomes a computed tensor."""
        self._graph.tensors[tensor].buffer = 0 if values is None else self._buffer(values)

    def retype(self, tensor: int, kind: str, shape: np.ndarray | None = None) -> None:
        """Gives a tensor another type and, if given, another fixed shape."""
        entry = self._graph.tensors[tensor]
        entry.type = getattr(self._schema.TensorType, kind)
        if shape is not None:
            entry.shape, entry.shapeSignature = shape, None

    def quantize(
        self,
        tensor: int,
        scales: np.ndarray | None,
        axis: int = 0,
    ) -> None:
        """Sets a tensor's scales, with zero points of 0.

        Args:
            tensor: Its number.
            scales: One, or one for each channel; None for a tensor that is not quantized.
            axis: Axis of the channels. Defaults to 0.
        """
        entry = self._graph.tensors[tensor]
        if scales is None:
            entry.quantization = None
            return
        table = entry.quantization = entry.quantization or self._schema.QuantizationParametersT()
        table.scale, table.quantizedDimension = np.asarray(scales, np.float32), axis
        table.zeroPoint = np.zeros(len(scales), np.int64)

    def set_zero_points(self, tensor: int, points: np.ndarray) -> None:
        """Sets the zero points of a quantized tensor: as many as it has scales, or one for all."""
        self._graph.tensors[tensor].quantization.zeroPoint = np.asarray(points, np.int64)

    def type_as(self, tensor: int, model: int) -> None:
        """Copies the type and scales of another tensor."""
        entry, other = self._graph.tensors[tensor], self._graph.tensors[model]
        entry.type, entry.quantization = other.type, copy.copy(other.quantization)

    def set_sparsity(self, tensor: int, sparsity: Sparsity) -> None:
        """Sets the sparsity of a tensor that stores only some of its values."""
        table = self._schema.SparsityParametersT()
        table.traversalOrder = np.array(sparsity.traversal_order, np.int32)
        table.blockMap = np.array(sparsity.block_map, np.int32)
        table.dimMetadata = [self._level(level) for level in sparsity.levels]
        self._graph.tensors[tensor].sparsity = table

    def _level(self, level: Level) -> Any:
        entry = self._schema.DimensionMetadataT()
        entry.format = self._schema.DimensionType.DENSE
        entry.denseSize = level.size
        if not level.is_dense:
            entry.format = self._schema.DimensionType.SPARSE_CSR
            entry.arraySegmentsType, entry.arraySegments = self._vector(level.segments)
            entry.arrayIndicesType, entry.arrayIndices = self._vector(level.indices)
        return entry

    def _vector(self, numbers: Sequence[int]) -> tuple[int, Any]:
        kinds = {1: ("Uint8Vector", np.uint8), 2: ("Uint16Vector", np.uint16)}
        name, dtype = kinds.get(index_bytes(max(numbers, default=0)), ("Int32Vector", np.int32))
        vector = getattr(self._schema, f"{name}T")(values=np.array(numbers, dtype))
        return getattr(self._schema.SparseIndexVector, name), vector

    def rename(self, name: Callable[[int, int], str]) -> None:
        """Gives every tensor a name; `name` is called with the numbers of subgraph and tensor."""
        for number, graph in enumerate(self._tree.subgraphs):
            for index, tensor in enumerate(graph.tensors):
                tensor.name = name(number, index)

    def _buffer(self, values: bytes | np.ndarray) -> int:
        data = values.tobytes() if isinstance(values, np.ndarray) else values
        self._tree.buffers.append(self._schema.BufferT(data=np.frombuffer(data, np.uint8)))
        return len(self._tree.buffers) - 1

    # --- Operators --------------------------------------------------------------------------------

    def operator_code(self, name: str, version: int = 1) -> int:
        """Returns the index of a built-in operator's code, adding it if missing."""
        wanted = getattr(self._schema.BuiltinOperator, name)
        for number, known in enumerate(self._tree.operatorCodes):
            found = max(known.builtinCode, known.deprecatedBuiltinCode)
            if (found, known.version) == (wanted, version):
                return number
        return self.new_operator_code(name, version)

    def new_operator_code(self, name: str, version: int = 1, custom: bool = False) -> int:
        """Adds the code of a built-in or a custom operator and returns its number."""
        numbers = self._schema.BuiltinOperator
        code = numbers.CUSTOM if custom else getattr(numbers, name)
        self._tree.operatorCodes.append(
            self._schema.OperatorCodeT(
                # Codes above 127 do not fit the old one-byte field, which then holds its marker.
                deprecatedBuiltinCode=min(code, 127),
                builtinCode=code,
                customCode=name if custom else None,
                version=version,
            )
        )
        return len(self._tree.operatorCodes) - 1

    def complete_operator_codes(self) -> None:
        """Fills the operator code field that files older than schema 3a leave empty."""
        for entry in self._tree.operatorCodes:
            entry.builtinCode = max(entry.builtinCode, entry.deprecatedBuiltinCode)

    def new_operator(
        self,
        code: int,
        inputs: Iterable[int],
        outputs: Iterable[int],
        custom_options: bytes | None = None,
        intermediates: Iterable[int] | None = None,
    ) -> Any:
        """Returns a new operator, to be placed by `place_before` or `place_instead`.

        Args:
            code: Number of its code, see `operator_code`.
            inputs: Tensor numbers, -1 for one that is left out.
            outputs: Tensor numbers.
            custom_options: Those of a custom operator. Optional.
            intermediates: Tensor numbers of an LSTM's intermediate results. Optional.
        """
        made = self._schema.OperatorT(opcodeIndex=code, inputs=list(inputs), outputs=list(outputs))
        if intermediates is not None:
            made.intermediates = list(intermediates)
        if custom_options is not None:
            made.customOptions = np.frombuffer(custom_options, np.uint8)
        return made

    def type_number(self, kind: str) -> int:
        """Returns the number of a tensor type, as options hold it."""
        return int(getattr(self._schema.TensorType, kind))

    def set_options(self, operator: Any, kind: str | None, **fields: Any) -> None:
        """Gives an operator options, e.g. `"ReshapeOptions", newShape=[1, 4]`; None for none."""
        if kind is None:
            operator.builtinOptionsType, operator.builtinOptions = 0, None
            return
        operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
        operator.builtinOptions = getattr(self._schema, f"{kind}T")(**fields)

    def copy_options(self, operator: Any, other: Any) -> None:
        """Copies the options of another operator, possibly from another file."""
        operator.builtinOptionsType = other.builtinOptionsType
        operator.builtinOptions = other.builtinOptions

    def set_code(self, operator: Any, name: str, version: int, shared: bool = True) -> None:
        """Changes an operator's kind or version; inputs and options stay.

        Args:
            operator: One of the file's operators.
            name: A built-in operator.
            version: Of that operator.
            shared: Whether it may share its code with operators of the same name and version.
                Defaults to True.
        """
        find = self.operator_code if shared else self.new_operator_code
        operator.opcodeIndex = find(name, version)

    def set_input(self, operator: Any, position: int, tensor: int) -> None:
        """Makes an operator read another tensor."""
        inputs = _listed(operator.inputs)
        inputs[position] = tensor
        operator.inputs = inputs

    def own_input(self, operator: Any, position: int) -> int:
        """Returns the tensor at an input, after making sure that no other operator reads it.

        If others do, they keep it and this operator gets a copy.
        """
        tensor = int(operator.inputs[position])
        if self._readers[tensor] > 1:
            self._readers[tensor] -= 1
            tensor = self.copy(tensor)
            self.set_input(operator, position, tensor)
        return tensor

    def place_before(self, operator: Any, new: Iterable[Any]) -> None:
        """Inserts new operators before one of the file's."""
        place = self._places[id(operator)]
        place[place.index(operator) : place.index(operator)] = new

    def place_after(self, operator: Any, new: Iterable[Any]) -> None:
        """Inserts new operators after one of the file's, and after those placed there before."""
        self._places[id(operator)] += new

    def place_instead(self, operator: Any, new: Iterable[Any]) -> None:
        """Replaces one of the file's operators by new ones, possibly none."""
        self._places[id(operator)] = list(new)

    # --- The whole file ---------------------------------------------------------------------------

    def set_inputs(self, tensors: Sequence[int]) -> None:
        """Makes tensors the model's inputs; signatures, which name the old ones, are removed."""
        self._graph.inputs = np.array(tensors, np.int32)
        self._tree.signatureDefs = None

    def set_signatures(self) -> None:
        """Gives a file without signatures an empty list of them, which some readers require."""
        self._tree.signatureDefs = self._tree.signatureDefs or []

    def strip(self, keep_names: Names = "interface") -> None:
        """Removes what no interpreter reads while it runs the model; see `strip`."""
        tree = self._tree
        tree.signatureDefs = tree.metadata = tree.metadataBuffer = tree.description = None
        self._order()
        for graph in tree.subgraphs:
            graph.name = None
            interface = {*graph.inputs, *graph.outputs}
            for index, tensor in enumerate(graph.tensors):
                named = keep_names == "all" or (
                    keep_names == "computed" and not self._holds_values(tensor)
                )
                if not named and index not in interface:
                    tensor.name = None
                # The flag tells a scalar from an unknown shape; other shapes speak for themselves.
                if tensor.shape is not None and len(tensor.shape):
                    tensor.hasRank = False
                quantization = tensor.quantization
                if quantization is None:
                    continue
                quantization.min = quantization.max = None
                if quantization.scale is None or len(quantization.scale) == 0:
                    tensor.quantization = None
            for operator in graph.operators:
                # Equal arrays, unlike equal lists, are stored once.
                operator.inputs, operator.outputs = (
                    None if numbers is None else np.asarray(numbers, np.int32)
                    for numbers in (operator.inputs, operator.outputs)
                )

    def _holds_values(self, tensor: Any) -> bool:
        data = self._tree.buffers[tensor.buffer].data
        return tensor.buffer != 0 and data is not None and len(data) > 0

    def drop_unused(self) -> tuple[int, ...]:
        """Removes what nothing reads: operators, tensors, operator codes, buffers.

        Tensors are renumbered. Signatures, which refer to tensor indices, are removed too. For
            files of
        one subgraph.

        Returns:
            The former indices of the remaining tensors.
        """
        self._order()
        graph, tree = self._graph, self._tree
        needed = {*graph.outputs}
        kept: list[Any] = []
        for operator in reversed(graph.operators):
            # An operator without outputs writes a variable.
            if len(operator.outputs) and needed.isdisjoint(operator.outputs):
                continue
            kept.append(operator)
            reads = (*operator.inputs, *operator.outputs, *_listed(operator.intermediates))
            needed.update(index for index in reads if index >= 0)
        graph.operators = kept[::-1]
        used = sorted({*needed, *graph.inputs})
        number = {old: new for new, old in enumerate(used)} | {-1: -1}
        graph.tensors = [graph.tensors[index] for index in used]
        for operator in graph.operators:
            operator.intermediates = [number[i] for i in _listed(operator.intermediates)] or None
        for holder in (graph, *graph.operators):
            # Equal arrays, unlike equal lists, are stored once.
            holder.inputs = np.array([number[index] for index in holder.inputs], np.int32)
            holder.outputs = np.array([number[index] for index in holder.outputs], np.int32)
        codes = sorted({operator.opcodeIndex for operator in graph.operators})
        tree.operatorCodes = [tree.operatorCodes[index] for index in codes]
        for operator in graph.operators:
            operator.opcodeIndex = codes.index(operator.opcodeIndex)
        tree.signatureDefs = tree.metadata = tree.metadataBuffer = None
        buffers = sorted({0, *(tensor.buffer for tensor in graph.tensors)})
        tree.buffers = [tree.buffers[index] for index in buffers]
        for tensor in graph.tensors:
            tensor.buffer = buffers.index(tensor.buffer)
        self._restart()
        return tuple(int(index) for index in used)

    def drop_unused_buffers(self) -> None:
        """Empties the buffers that no tensor or metadata entry refers to any more."""
        tensors = [tensor for graph in self._tree.subgraphs for tensor in graph.tensors]
        used = {holder.buffer for holder in (*tensors, *(self._tree.metadata or ()))}
        for number, buffer in enumerate(self._tree.buffers):
            if number not in used:
                buffer.data = None

    def pack(self) -> bytes:
        """Returns the file in its current state."""
        self._order()
        return pack(self._tree)

    def _order(self) -> None:
        """Orders the operators: those of the file with the inserted ones around them."""
        self._graph.operators = [new for old in self.operators for new in self._places[id(old)]]

    def _restart(self) -> None:
        """Makes the current operators the file's own."""
        self.operators = tuple(self._graph.operators)
        self._places = {id(operator): [operator] for operator in self.operators}
        self._readers = Counter(int(i) for o in self.operators for i in _listed(o.inputs))


def _listed(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]


def strip(model: FlatModel | bytes, keep_names: Names = "interface") -> bytes:
    """Returns the file without the parts that no interpreter reads while running the model.

    Removed: tensor names, signatures, metadata, the description, recorded minimum and maximum of
    quantized tensors, flags of known ranks, duplicate and empty buffers. Tensor and operator
    indices do not change.

    Args:
        model: A .tflite file: bytes, or as read.
        keep_names: Which tensors keep their names: those of the model's inputs and outputs
            (`interface`), all that inference computes (`computed`), or `all`. Defaults to
            `interface`.
    """
    editor = ModelEditor(model)
    editor.strip(keep_names)
    return editor.pack()
