"""What a Keras configuration may name: classes and functions that compute only on tensors.

Names that are missing here are refused, whatever they are: a Keras version with more of them needs
more entries here. `REFUSED_LAYERS` are the Keras layers that are excluded, with the reason.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Layers of Keras 3 and of Keras 2.
LAYERS = _names(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D
    AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D BatchNormalization
    BatchNormalizationV1 BatchNormalizationV2 Bidirectional CategoryEncoding CenterCrop
    Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D
    Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D
    Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D
    Convolution3DTranspose Cropping1D Cropping2D Cropping3D CutMix Dense DepthwiseConv1D
    DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding Equalization Flatten
    GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D
    GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization GroupQueryAttention HashedCrossing Hashing Identity InputLayer
    IntegerLookup LSTM LSTMCell LayerNormalization LeakyReLU LocallyConnected1D
    LocallyConnected2D Masking MaxNumBoundingBoxes MaxPool1D MaxPool2D MaxPool3D MaxPooling1D
    MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MixUp MultiHeadAttention Multiply
    Normalization PReLU Permute Pipeline RMSNormalization RNN RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform
    RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue
    RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation
    RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom ReLU RepeatVector
    Rescaling Reshape Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D
    SeparableConv2D SeparableConvolution1D SeparableConvolution2D SimpleRNN SimpleRNNCell
    Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D
    SpectralNormalization StackedRNNCells StringLookup Subtract SyncBatchNormalization
    TextVectorization ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """
)

# Keras layers that no file may name, and what each does.
REFUSED_LAYERS = {
    "Lambda": "holds Python code",
    "TorchModuleWrapper": "holds a pickled PyTorch module",
    "JaxLayer": "holds a Python function",
    "FlaxLayer": "holds a Python function",
    "TFSMLayer": "runs another file's graph",
    "Layer": "computes nothing by itself",
    "Wrapper": "computes nothing by itself",
}

MODELS = frozenset({"Model", "Functional", "Sequential"})

INITIALIZERS = _names(
    """
    Constant ConstantV2 GlorotNormal GlorotNormalV2 GlorotUniform GlorotUniformV2 HeNormal
    HeNormalV2 HeUniform HeUniformV2 Identity IdentityInitializer IdentityV2 LecunNormal
    LecunNormalV2 LecunUniform LecunUniformV2 Ones OnesV2 Orthogonal OrthogonalInitializer
    OrthogonalV2 RandomNormal RandomNormalV2 RandomUniform RandomUniformV2 STFT STFTInitializer
    TruncatedNormal TruncatedNormalV2 VarianceScaling VarianceScalingV2 Zeros ZerosV2
    """
)
REGULARIZERS = frozenset({"L1", "L1L2", "L2", "OrthogonalRegularizer"})
CONSTRAINTS = frozenset({"MaxNorm", "MinMaxNorm", "NonNeg", "RadialConstraint", "UnitNorm"})
DTYPE_POLICIES = _names(
    """
    AWQDTypePolicy DTypePolicy DTypePolicyMap FloatDTypePolicy GPTQDTypePolicy Int4DTypePolicy
    Policy PolicyV1 QuantizedDTypePolicy QuantizedFloat8DTypePolicy
    """
)
QUANTIZERS = _names(
    """
    AbsMaxQuantizer Float8QuantizationConfig Int4QuantizationConfig Int8QuantizationConfig
    """
)

# Losses, metrics, optimizers and their schedules: Keras compiles nested models.
TRAINING = _names(
    """
    AUC Accuracy Adadelta Adafactor Adagrad Adam AdamW Adamax BinaryAccuracy BinaryCrossentropy
    BinaryFocalCrossentropy BinaryIoU CTC CategoricalAccuracy CategoricalCrossentropy
    CategoricalFocalCrossentropy CategoricalGeneralizedCrossEntropy CategoricalHinge Circle
    ConcordanceCorrelation CosineDecay CosineDecayRestarts CosineSimilarity Dice
    ExponentialDecay F1Score FBetaScore FalseNegatives FalsePositives Ftrl Hinge Huber
    InverseTimeDecay IoU KLDivergence Lamb Lion LogCosh LogCoshError LossScaleOptimizer Mean
    MeanAbsoluteError MeanAbsolutePercentageError MeanIoU MeanMetricWrapper MeanRelativeError
    MeanSquaredError MeanSquaredLogarithmicError MeanTensor MultiOptimizer Muon Nadam OneHotIoU
    OneHotMeanIoU OptimizerMap PearsonCorrelation PiecewiseConstantDecay Poisson PolynomialDecay
    Precision PrecisionAtRecall R2Score RMSprop Recall RecallAtPrecision Reduction
    RootMeanSquaredError SGD ScheduleFreeAdamW SensitivityAtSpecificity
    SparseCategoricalAccuracy SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy
    SpecificityAtSensitivity SquaredHinge Sum TopKCategoricalAccuracy TrueNegatives
    TruePositives Tversky
    """
)

# Losses and metrics that are functions.
TRAINING_FUNCTIONS = _names(
    """
    binary_accuracy binary_crossentropy binary_focal_crossentropy categorical_accuracy
    categorical_crossentropy categorical_focal_crossentropy
    categorical_generalized_cross_entropy categorical_hinge circle concordance_correlation
    cosine_similarity ctc dice hinge huber kl_divergence kld kullback_leibler_divergence
    log_cosh logcosh mae mape mean_absolute_error mean_absolute_percentage_error
    mean_squared_error mean_squared_logarithmic_error mse msle pearson_correlation poisson
    sparse_categorical_accuracy sparse_categorical_crossentropy
    sparse_top_k_categorical_accuracy squared_hinge top_k_categorical_accuracy tversky
    """
)

# Operations of `keras.ops`, except those that call a function.
OPERATIONS = _names(
    """
    Abs Absolute AdaptiveAveragePool AdaptiveMaxPool Add AffineTransform All AllClose Amax Amin
    Angle Any Append Arange Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax Argmin
    Argpartition Argsort Array ArraySplit Average AveragePool BatchNorm BinaryCrossentropy
    Bincount BitwiseAnd BitwiseInvert BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift
    BitwiseXor BroadcastTo CDist CTCDecode CTCLoss Cast CategoricalCrossentropy Cbrt Ceil Celu
    Cholesky CholeskyInverse Clip Concatenate Conj Conjugate Conv ConvTranspose ConvertToTensor
    Copy Corrcoef Correlate Cos Cosh CountNonzero CropImages Cross Cumprod Cumsum Deg2rad
    DepthToSpace DepthwiseConv Det Diag Diagflat Diagonal Diff Digitize Divide DivideNoNan Dot
    DotProductAttention Dsplit Dstack Eig Eigh Einsum ElasticTransform Elu EmptyLike Equal Erf
    Erfc Erfinv Exp Exp2 ExpandDims Expm1 ExtractPatches ExtractSequences FFT FFT2 Fabs Flip
    Fliplr Flipud Floor FloorDivide Fmax Fmin Fmod Fold Full FullLike GaussianBlur Gcd Gelu
    Geomspace GetItem Glu Greater GreaterEqual HSVToRGB HardShrink HardSigmoid HardSilu HardTanh
    Heaviside Histogram Hsplit Hstack Hypot I0 IFFT2 IRFFT ISTFT Imag InTopK Inner Inv IsIn
    Isclose Isfinite Isinf Isnan Isneginf Isposinf Isreal Kron LayerNorm Lcm Ldexp LeakyRelu
    LeftShift Less LessEqual Linspace Log Log10 Log1p Log2 LogSigmoid LogSoftmax Logaddexp
    Logaddexp2 Logdet LogicalAnd LogicalNot LogicalOr LogicalXor Logspace Logsumexp Lstsq
    LuFactor MapCoordinates Matmul MatrixRank Max MaxPool Maximum Mean Median Meshgrid Min
    Minimum Mod Moments Moveaxis MultiHot Multiply NanToNum Nanargmax Nanargmin Nancumprod
    Nancumsum Nanmax Nanmean Nanmedian Nanmin Nanpercentile Nanprod Nanquantile Nanstd Nansum
    Nanvar Ndim Negative Nextafter Nonzero Norm Normalize NotEqual OneHot OnesLike Outer PSNR
    Pad PadImages Percentile PerspectiveTransform Pinv Polar Power Prod Ptp Qr Quantile RFFT
    RGBToGrayscale RGBToHSV RMSNorm Rad2deg Ravel Real Rearrange Reciprocal Relu Relu6 Repeat
    Reshape Resize RightShift Roll Rot90 Round Rsqrt SSIM STFT SVD SaturateCast
    ScaleAndTranslate Scatter ScatterUpdate SearchSorted SegmentMax SegmentMin SegmentProd
    SegmentReduction SegmentSum Select Selu SeparableConv Sigmoid Sign Signbit Silu Sin Sinc
    Sinh Size Slice SliceUpdate Slogdet SobelEdges SoftShrink Softmax Softplus Softsign Solve
    SolveTriangular Sort SpaceToDepth SparseCategoricalCrossentropy SparsePlus SparseSigmoid
    Sparsemax Split Sqrt Square Squareplus Squeeze Stack Std StopGradient Subtract Sum Swapaxes
    Take TakeAlongAxis Tan Tanh TanhShrink Tensordot Threshold Tile TopK Trace Transpose
    Trapezoid Tril Triu TrueDivide Trunc Unfold Unique UnravelIndex Unstack Vander Var Vdot View
    ViewAsComplex ViewAsReal Vsplit Vstack Where ZerosLike
    """
)

# Activation functions.
ACTIVATIONS = _names(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh
    leaky_relu linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink
    softmax softplus softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh
    tanh_shrink threshold
    """
)

# Functions of TensorFlow that a TFOpLambda of Keras 2 may call.
TENSORFLOW_FUNCTIONS = _names(
    """
    __operators__.add __operators__.getitem abs add argmax argmin argsort batch_to_space bitcast
    bitwise.bitwise_and bitwise.bitwise_or bitwise.bitwise_xor bitwise.invert bitwise.left_shift
    bitwise.right_shift boolean_mask broadcast_static_shape broadcast_to cast clip_by_norm
    clip_by_value compat.v1.argmax compat.v1.argmin compat.v1.depth_to_space compat.v1.gather
    compat.v1.image.resize_bilinear compat.v1.image.resize_nearest_neighbor
    compat.v1.math.argmax compat.v1.math.argmin compat.v1.nn.avg_pool compat.v1.nn.conv2d
    compat.v1.nn.depthwise_conv2d compat.v1.nn.log_softmax compat.v1.nn.max_pool
    compat.v1.nn.softmax compat.v1.space_to_depth compat.v1.squeeze compat.v1.transpose
    compat.v1.where concat convert_to_tensor cos cumsum divide einsum ensure_shape equal exp
    expand_dims eye fill floor gather gather_nd greater greater_equal identity
    image.adjust_brightness image.adjust_contrast image.adjust_gamma image.adjust_hue
    image.adjust_saturation image.central_crop image.crop_and_resize image.crop_to_bounding_box
    image.flip_left_right image.flip_up_down image.grayscale_to_rgb image.hsv_to_rgb
    image.image_gradients image.pad_to_bounding_box image.per_image_standardization image.psnr
    image.resize image.resize_with_crop_or_pad image.resize_with_pad image.rgb_to_grayscale
    image.rgb_to_hsv image.rgb_to_yuv image.rot90 image.sobel_edges image.ssim
    image.total_variation image.transpose image.yuv_to_rgb keras.activations.elu
    keras.activations.exponential keras.activations.gelu keras.activations.hard_sigmoid
    keras.activations.linear keras.activations.mish keras.activations.relu
    keras.activations.selu keras.activations.sigmoid keras.activations.softmax
    keras.activations.softplus keras.activations.softsign keras.activations.swish
    keras.activations.tanh less less_equal linalg.adjoint linalg.band_part linalg.cross
    linalg.det linalg.diag linalg.diag_part linalg.einsum linalg.eye linalg.inv
    linalg.l2_normalize linalg.matmul linalg.matrix_transpose linalg.matvec linalg.norm
    linalg.normalize linalg.set_diag linalg.tensor_diag linalg.tensor_diag_part linalg.tensordot
    linalg.trace linspace logical_and logical_not logical_or math.abs math.accumulate_n
    math.acos math.acosh math.add math.add_n math.angle math.argmax math.argmin math.asin
    math.asinh math.atan math.atan2 math.atanh math.ceil math.confusion_matrix math.conj
    math.cos math.cosh math.count_nonzero math.cumprod math.cumsum math.cumulative_logsumexp
    math.digamma math.divide math.divide_no_nan math.equal math.erf math.erfc math.erfinv
    math.exp math.expm1 math.floor math.floordiv math.floormod math.greater math.greater_equal
    math.imag math.in_top_k math.invert_permutation math.is_finite math.is_inf math.is_nan
    math.l2_normalize math.less math.less_equal math.lgamma math.log math.log1p math.log_sigmoid
    math.log_softmax math.logical_and math.logical_not math.logical_or math.logical_xor
    math.maximum math.minimum math.mod math.multiply math.multiply_no_nan math.negative
    math.not_equal math.polyval math.pow math.real math.reciprocal math.reciprocal_no_nan
    math.reduce_all math.reduce_any math.reduce_euclidean_norm math.reduce_logsumexp
    math.reduce_max math.reduce_mean math.reduce_min math.reduce_prod math.reduce_std
    math.reduce_sum math.reduce_variance math.rint math.round math.rsqrt math.scalar_mul
    math.segment_max math.segment_mean math.segment_min math.segment_prod math.segment_sum
    math.sigmoid math.sign math.sin math.sinh math.softmax math.softplus math.softsign math.sqrt
    math.square math.squared_difference math.subtract math.tan math.tanh math.top_k math.truediv
    math.unsorted_segment_max math.unsorted_segment_mean math.unsorted_segment_min
    math.unsorted_segment_prod math.unsorted_segment_sum math.xdivy math.xlogy matmul maximum
    meshgrid minimum multiply negative nn.avg_pool nn.avg_pool1d nn.avg_pool2d nn.avg_pool3d
    nn.batch_normalization nn.bias_add nn.conv1d nn.conv1d_transpose nn.conv2d
    nn.conv2d_transpose nn.conv3d nn.conv3d_transpose nn.conv_transpose nn.convolution nn.crelu
    nn.depth_to_space nn.depthwise_conv2d nn.dilation2d nn.elu nn.embedding_lookup nn.erosion2d
    nn.gelu nn.l2_loss nn.l2_normalize nn.leaky_relu nn.local_response_normalization
    nn.log_softmax nn.lrn nn.max_pool nn.max_pool1d nn.max_pool2d nn.max_pool3d nn.moments
    nn.pool nn.relu nn.relu6 nn.selu nn.separable_conv2d nn.sigmoid nn.silu nn.softmax
    nn.softplus nn.softsign nn.space_to_batch nn.space_to_depth nn.swish nn.tanh nn.top_k
    nn.zero_fraction norm not_equal one_hot ones ones_like pad pow
    quantization.fake_quant_with_min_max_args quantization.fake_quant_with_min_max_vars range
    rank reduce_all reduce_any reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod
    reduce_sum repeat reshape reverse reverse_sequence roll round scatter_nd sequence_mask shape
    shape_n sigmoid sign signal.fft signal.fft2d signal.frame signal.hamming_window
    signal.hann_window signal.ifft signal.inverse_stft signal.irfft
    signal.linear_to_mel_weight_matrix signal.mfccs_from_log_mel_spectrograms
    signal.overlap_and_add signal.rfft signal.rfft2d signal.stft sin size slice sort
    space_to_batch space_to_batch_nd split sqrt square squeeze stack stop_gradient strided_slice
    subtract tan tanh tensor_scatter_nd_add tensor_scatter_nd_max tensor_scatter_nd_min
    tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile transpose truncatediv
    truncatemod unique unstack where zeros zeros_like
    """
)
