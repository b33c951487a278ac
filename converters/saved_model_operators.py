"""The operators allowed in a SavedModel: those that compute on its own tensors and variables.

Names that are missing here are refused, whatever they are. Nothing here opens a file, prints, or
calls Python.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ARITHMETIC = _names(
    """
    Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax ArgMin Asin
    Asinh Atan Atan2 Atanh BatchMatMul BatchMatMulV2 BatchMatMulV3 Betainc Bincount BitwiseAnd
    BitwiseOr BitwiseXor Bucketize Ceil ClipByValue Complex ComplexAbs Conj ConjugateTranspose Cos
    Cosh Cross Cumprod Cumsum CumulativeLogsumexp DenseBincount Digamma Div DivNoNan Einsum Equal
    Erf Erfc Erfinv EuclideanNorm Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual
    HistogramFixedWidth Igamma Igammac Imag Inv Invert InvertPermutation IsFinite IsInf IsNan
    L2Loss LeftShift Less LessEqual Lgamma LinSpace Log Log1p LogicalAnd LogicalNot LogicalOr
    LowerBound MatMul Max Maximum Mean Min Minimum Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual
    Polygamma PopulationCount Pow Prod Real RealDiv Reciprocal RightShift Rint Round Rsqrt
    SegmentMax SegmentMaxV2 SegmentMean SegmentMin SegmentMinV2 SegmentProd SegmentProdV2
    SegmentSum SegmentSumV2 Sign Sin Sinh SparseSegmentMean SparseSegmentSqrtN SparseSegmentSum
    Sqrt Square SquaredDifference Sub Sum Tan TruncateDiv TruncateMod UnsortedSegmentMax
    UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum UpperBound Xdivy Xlog1py Xlogy Zeta
    """
)
_LINEAR_ALGEBRA = _names(
    """
    Cholesky LogMatrixDeterminant Lu MatrixBandPart MatrixDeterminant MatrixDiag MatrixDiagPart
    MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixInverse MatrixSetDiag
    MatrixSetDiagV2 MatrixSetDiagV3 MatrixSolve MatrixTriangularSolve Qr SelfAdjointEigV2 Svd
    TridiagonalMatMul TridiagonalSolve
    """
)
_NEURAL = _names(
    """
    AvgPool AvgPool3D BatchNormWithGlobalNormalization BiasAdd BiasAddV1 BlockLSTM BlockLSTMV2
    CheckNumerics CheckNumericsV2 Conv Conv2D Conv2DBackpropInput Conv2DBackpropInputV2 Conv3D
    Conv3DBackpropInput Conv3DBackpropInputV2 CudnnRNNV3 DataFormatDimMap DataFormatVecPermute
    DepthwiseConv2dNative DepthwiseConv2dNativeBackpropInput Dequantize Dilation2D Elu
    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel
    FractionalAvgPool FractionalMaxPool FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3
    FusedPadConv2D FusedResizeAndPadConv2D GRUBlockCell InTopK InTopKV2 LRN LSTMBlockCell LeakyRelu
    LogSoftmax MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax NthElement QuantizeAndDequantize
    QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 QuantizeV2 Relu Relu6
    Selu Sigmoid Softmax SoftmaxCrossEntropyWithLogits Softplus Softsign
    SparseSoftmaxCrossEntropyWithLogits Tanh TopK TopKV2
    """
)
_IMAGES_AND_SOUND = _names(
    """
    AdjustContrastv2 AdjustHue AdjustSaturation AudioSpectrogram CombinedNonMaxSuppression
    CropAndResize ExtractGlimpse ExtractGlimpseV2 ExtractImagePatches ExtractVolumePatches FFT
    FFT2D FFT3D HSVToRGB IFFT IFFT2D IFFT3D IRFFT IRFFT2D IRFFT3D ImageProjectiveTransformV2
    ImageProjectiveTransformV3 Mfcc NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3
    NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps RFFT RFFT2D RFFT3D
    RGBToHSV ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate
    """
)
_ARRAYS = _names(
    """
    BatchToSpace BatchToSpaceND Bitcast BroadcastArgs BroadcastGradientArgs BroadcastTo Cast Concat
    ConcatOffset ConcatV2 Const DepthToSpace Diag DiagPart Empty EnsureShape ExpandDims Fill Gather
    GatherNd GatherV2 GuaranteeConst Identity IdentityN InplaceAdd InplaceSub InplaceUpdate
    ListDiff MirrorPad NoOp OneHot OnesLike Pack Pad PadV2 ParallelConcat Placeholder
    PlaceholderV2 PlaceholderWithDefault PreventGradient RaggedGather RaggedRange
    RaggedTensorToTensor Range Rank Reshape Reverse ReverseSequence ReverseV2 Roll ScatterNd
    ScatterNdNonAliasingAdd Select SelectV2 Shape ShapeN Size Slice Snapshot SpaceToBatch
    SpaceToBatchND SpaceToDepth SparseReorder SparseReshape SparseTensorDenseMatMul SparseToDense
    Split SplitV Squeeze StopGradient StridedSlice TensorListConcat TensorListConcatLists
    TensorListConcatV2 TensorListElementShape TensorListFromTensor TensorListGather
    TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack TensorListReserve
    TensorListResize TensorListScatter TensorListScatterIntoExistingList TensorListScatterV2
    TensorListSetItem TensorListSplit TensorListStack EmptyTensorList TensorScatterAdd
    TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate
    Tile Transpose Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex Where
    ZerosLike TensorArrayV3 TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3
    TensorArrayReadV3 TensorArrayScatterV3 TensorArraySizeV3 TensorArraySplitV3 TensorArrayWriteV3
    """
)
_CONTROL = _names(
    """
    Assert Case ControlTrigger Enter Exit FakeParam For If LoopCond Merge NextIteration
    PartitionedCall StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile Switch
    SymbolicGradient ToBool While
    """
)
_VARIABLES = _names(
    """
    AssignAddVariableOp AssignSubVariableOp AssignVariableOp DestroyResourceOp ReadVariableOp
    ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterNdAdd ResourceScatterNdUpdate
    ResourceScatterUpdate ResourceStridedSliceAssign VarHandleOp VarIsInitializedOp VariableShape
    """
)
# Tables in memory, but not those that fill themselves from a file.
_TABLES = _names(
    """
    AsString HashTableV2 LookupTableExportV2 LookupTableFindV2 LookupTableImportV2
    LookupTableInsertV2 LookupTableRemoveV2 LookupTableSizeV2 InitializeTableV2
    MutableDenseHashTableV2 MutableHashTableV2 MutableHashTableOfTensorsV2 StringToHashBucketFast
    StringToHashBucketStrong
    """
)
_RANDOM = _names(
    """
    Multinomial ParameterizedTruncatedNormal RandomGamma RandomPoissonV2 RandomShuffle
    RandomStandardNormal RandomUniform RandomUniformInt RngReadAndSkip RngSkip
    StatefulRandomBinomial
    StatefulStandardNormalV2 StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt
    StatefulUniformInt StatelessMultinomial StatelessParameterizedTruncatedNormal
    StatelessRandomBinomial StatelessRandomGammaV2 StatelessRandomGammaV3 StatelessRandomGetAlg
    StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomPoisson StatelessRandomUniform
    StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2 StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessShuffle StatelessTruncatedNormal
    StatelessTruncatedNormalV2 TruncatedNormal
    """
)

OPERATORS = (
    _ARITHMETIC
    | _LINEAR_ALGEBRA
    | _NEURAL
    | _IMAGES_AND_SOUND
    | _ARRAYS
    | _CONTROL
    | _VARIABLES
    | _TABLES
    | _RANDOM
)

# Operators of the functions that save and restore variables. Loading does not run them.
SAVERS = _names(
    """
    MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch StringJoin
    """
)
