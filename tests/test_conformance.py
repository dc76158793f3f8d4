"""One table of all rules, one test for each: trace, select, soft-prune, strip, and the outputs are the same.

A rule that is registered and not in the table fails the last test here.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras.src.applications.convnext import LayerScale  # has no public name
from models import assert_same, difference, floats, outputs, parameters, shaken

import tfprune
from tfprune.keras_graph import lowering

# What stands between a convolution with eight filters and a Dense head, by the name of the rule's class.
ROWS = {
    "Conv1D": (1, lambda x: layers.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu")(x)),
    "Conv2D": (2, lambda x: layers.Conv2D(8, 3, groups=4, strides=2, padding="same")(x)),
    "Conv3D": (3, lambda x: layers.Conv3D(6, 2, strides=(1, 2, 1), padding="valid")(x)),
    "Conv1DTranspose": (1, lambda x: layers.Conv1DTranspose(6, 3, strides=2, padding="same")(x)),
    "Conv2DTranspose": (2, lambda x: layers.Conv2DTranspose(6, 3, strides=2)(x)),
    "Conv3DTranspose": (3, lambda x: layers.Conv3DTranspose(6, 2, padding="same")(x)),
    "DepthwiseConv1D": (1, lambda x: layers.DepthwiseConv1D(3, strides=2, depth_multiplier=2)(x)),
    "DepthwiseConv2D": (2, lambda x: layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)(x)),
    "SeparableConv1D": (1, lambda x: layers.SeparableConv1D(6, 3, depth_multiplier=2, activation="tanh")(x)),
    "SeparableConv2D": (2, lambda x: layers.SeparableConv2D(6, 3, padding="same", strides=2)(x)),
    "Dense": (2, lambda x: layers.Dense(6, activation="gelu")(x)),
    "BatchNormalization": (2, lambda x: layers.BatchNormalization()(x)),
    "LayerNormalization": (2, lambda x: layers.LayerNormalization()(x)),
    "GroupNormalization": (2, lambda x: layers.GroupNormalization(2)(x)),
    "RMSNormalization": (2, lambda x: layers.RMSNormalization()(x)),
    "UnitNormalization": (2, lambda x: layers.UnitNormalization()(x)),
    "Normalization": (2, lambda x: layers.Normalization(mean=np.arange(8) / 8, variance=np.arange(1, 9) / 4)(x)),
    "LayerScale": (2, lambda x: LayerScale(0.5, 8)(x)),
    "Rescaling": (2, lambda x: layers.Rescaling((np.arange(1, 9) / 4).tolist(), offset=0.1)(x)),
    "Activation": (2, lambda x: layers.Activation("hard_sigmoid")(x)),
    "ReLU": (2, lambda x: layers.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.1)(x)),
    "LeakyReLU": (2, lambda x: layers.LeakyReLU(negative_slope=0.2)(x)),
    "ELU": (2, lambda x: layers.ELU(0.7)(x)),
    "PReLU": (2, lambda x: layers.PReLU(shared_axes=(1, 2))(layers.PReLU()(x))),
    "Softmax": (2, lambda x: layers.Softmax()(x)),
    "Dropout": (2, lambda x: layers.Dropout(0.5)(x)),
    "SpatialDropout1D": (1, lambda x: layers.SpatialDropout1D(0.5)(x)),
    "SpatialDropout2D": (2, lambda x: layers.SpatialDropout2D(0.5)(x)),
    "SpatialDropout3D": (3, lambda x: layers.SpatialDropout3D(0.5)(x)),
    "AlphaDropout": (2, lambda x: layers.AlphaDropout(0.5)(x)),
    "GaussianDropout": (2, lambda x: layers.GaussianDropout(0.5)(x)),
    "GaussianNoise": (2, lambda x: layers.GaussianNoise(0.5)(x)),
    "ActivityRegularization": (2, lambda x: layers.ActivityRegularization(0.1)(x)),
    "Identity": (2, lambda x: layers.Identity()(x)),
    "MaxPooling1D": (1, lambda x: layers.MaxPooling1D(2)(x)),
    "MaxPooling2D": (2, lambda x: layers.MaxPooling2D(2, padding="same")(x)),
    "MaxPooling3D": (3, lambda x: layers.MaxPooling3D(2)(x)),
    "AveragePooling1D": (1, lambda x: layers.AveragePooling1D(2)(x)),
    "AveragePooling2D": (2, lambda x: layers.AveragePooling2D(3, strides=1, padding="same")(x)),
    "AveragePooling3D": (3, lambda x: layers.AveragePooling3D(2)(x)),
    "GlobalAveragePooling1D": (1, lambda x: layers.GlobalAveragePooling1D()(x)),
    "GlobalAveragePooling2D": (2, lambda x: layers.GlobalAveragePooling2D(keepdims=True)(x)),
    "GlobalAveragePooling3D": (3, lambda x: layers.GlobalAveragePooling3D()(x)),
    "GlobalMaxPooling1D": (1, lambda x: layers.GlobalMaxPooling1D(keepdims=True)(x)),
    "GlobalMaxPooling2D": (2, lambda x: layers.GlobalMaxPooling2D()(x)),
    "GlobalMaxPooling3D": (3, lambda x: layers.GlobalMaxPooling3D()(x)),
    "ZeroPadding1D": (1, lambda x: layers.ZeroPadding1D(1)(x)),
    "ZeroPadding2D": (2, lambda x: layers.ZeroPadding2D(((1, 0), (0, 2)))(x)),
    "ZeroPadding3D": (3, lambda x: layers.ZeroPadding3D(1)(x)),
    "Cropping1D": (1, lambda x: layers.Cropping1D(1)(x)),
    "Cropping2D": (2, lambda x: layers.Cropping2D(((1, 0), (0, 2)))(x)),
    "Cropping3D": (3, lambda x: layers.Cropping3D(1)(x)),
    "UpSampling1D": (1, lambda x: layers.UpSampling1D(2)(x)),
    "UpSampling2D": (2, lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x)),
    "UpSampling3D": (3, lambda x: layers.UpSampling3D(2)(x)),
    "Add": (2, lambda x: layers.Add()([x, branch(x), branch(x)])),
    "Subtract": (2, lambda x: layers.Subtract()([x, branch(x)])),
    "Multiply": (2, lambda x: layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)])),
    "Average": (2, lambda x: layers.Average()([x, branch(x)])),
    "Maximum": (2, lambda x: layers.Maximum()([x, branch(x)])),
    "Minimum": (2, lambda x: layers.Minimum()([x, branch(x)])),
    "Concatenate": (2, lambda x: layers.Concatenate()([x, branch(x), x])),
    "Reshape": (2, lambda x: layers.Reshape((6, 12, 4))(x)),
    "Flatten": (2, lambda x: layers.Flatten()(x)),
    "Permute": (2, lambda x: layers.Permute((3, 1, 2))(x)),
    "LSTM": (1, lambda x: layers.LSTM(6, return_sequences=True)(x)),
    "GRU": (1, lambda x: layers.GRU(6)(x)),
    "SimpleRNN": (1, lambda x: layers.SimpleRNN(6, activation="relu")(x)),
    "RNN": (1, lambda x: layers.RNN(layers.GRUCell(6, reset_after=False))(x)),
    "ConvLSTM1D": (2, lambda x: layers.ConvLSTM1D(6, 3)(x)),
    "ConvLSTM2D": (3, lambda x: layers.ConvLSTM2D(6, 3, padding="same", strides=2)(x)),
    "ConvLSTM3D": (3, lambda x: layers.ConvLSTM3D(4, 2)(layers.Reshape((2, 3, 6, 6, 8))(x))),
    "Bidirectional": (1, lambda x: layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)),
    "TimeDistributed": (2, lambda x: layers.TimeDistributed(layers.Conv1D(6, 3, padding="same"))(x)),
    "SpectralNormalization": (2, lambda x: layers.SpectralNormalization(layers.Conv2D(6, 3))(x)),
    "RepeatVector": (2, lambda x: layers.RepeatVector(3)(layers.GlobalMaxPooling2D()(x))),
    **{
        f"Adaptive{kind}Pooling{rank}D": (
            rank,
            lambda x, name=f"Adaptive{kind}Pooling{rank}D": getattr(layers, name)(2)(x),
        )
        for kind in ("Average", "Max")
        for rank in (1, 2, 3)
    },
    "Resizing": (2, lambda x: layers.Resizing(4, 9, pad_to_aspect_ratio=True)(x)),
    "CenterCrop": (2, lambda x: layers.CenterCrop(4, 3)(x)),
    # At inference it hands on what it gets, and says that it is of the cropped size.
    "RandomCrop": (2, lambda x: layers.RandomCrop(6, 6)(x)),
    "RandomColorDegeneration": (2, lambda x: layers.RandomColorDegeneration(0.5)(layers.Conv2D(3, 1)(x))),
    "AutoContrast": (2, lambda x: layers.AutoContrast(value_range=(-2, 2))(x)),
    "ContrastLimitedAdaptiveHistogramEqualization": (
        2,
        lambda x: layers.ContrastLimitedAdaptiveHistogramEqualization(value_range=(-2, 2), tile_grid_size=(2, 2))(x),
    ),
    "Pipeline": (2, lambda x: layers.Pipeline([layers.Rescaling(0.5), layers.RandomFlip()])(x)),
    "Masking": (2, lambda x: layers.Masking()(x)),
    "Discretization": (2, lambda x: layers.Discretization(bin_boundaries=[-0.5, 0.0, 0.5])(x)),
    "Hashing": (2, lambda x: layers.Hashing(7)(ops.cast(10 * x, "int32"))),
    "IntegerLookup": (2, lambda x: layers.IntegerLookup(vocabulary=[1, 2, 5])(ops.cast(10 * x, "int64"))),
    # Augmentation: the same whatever its settings, which are few here.
    **{
        name: (2, lambda x, name=name, settings=settings: getattr(layers, name)(**settings)(x))
        for name, settings in {
            "AugMix": {"value_range": (0, 1)},
            "CutMix": {},
            "MixUp": {},
            "RandAugment": {"value_range": (0, 1)},
            "RandomBrightness": {"factor": 0.2},
            "RandomColorJitter": {"contrast_factor": 0.2},
            "RandomContrast": {"factor": 0.2},
            "RandomElasticTransform": {},
            "RandomErasing": {},
            "RandomFlip": {},
            "RandomGaussianBlur": {},
            "RandomGrayscale": {},
            "RandomHue": {"factor": 0.2},
            "RandomInvert": {},
            "RandomPerspective": {},
            "RandomPosterization": {"factor": 4},
            "RandomRotation": {"factor": 0.2},
            "RandomSaturation": {"factor": 0.2},
            "RandomSharpness": {"factor": 0.2},
            "RandomShear": {"x_factor": (0.0, 0.2), "y_factor": (0.0, 0.1)},
            "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
            "RandomZoom": {"height_factor": 0.2},
            "Solarization": {"value_range": (0, 1)},
        }.items()
    },
}
# Layers that files of their own look at closely: here they are followed, and the outputs are the same.
ELSEWHERE = {
    "Attention": (1, lambda x: layers.Attention()([x, x])),
    "AdditiveAttention": (1, lambda x: layers.AdditiveAttention()([x, x])),
    "MultiHeadAttention": (1, lambda x: layers.GlobalMaxPooling1D()(layers.MultiHeadAttention(2, 3)(x, x))),
    "GroupedQueryAttention": (1, lambda x: layers.GlobalMaxPooling1D()(layers.GroupQueryAttention(3, 4, 2)(x, x))),
    "Dot": (1, lambda x: layers.Dot(axes=-1)([x, branch1(x)])),
    "EinsumDense": (1, lambda x: layers.EinsumDense("btc,cd->btd", (6, 5), bias_axes="d")(x)),
    "Embedding": (1, lambda x: layers.Dense(4)(layers.Embedding(4, 6)(layers.Discretization([-0.5, 0.0, 0.5])(x)))),
    "ReversibleEmbedding": (
        1,
        lambda x: layers.Dense(4)(layers.ReversibleEmbedding(4, 6)(layers.Discretization([-0.5, 0.0, 0.5])(x))),
    ),
}
# It reads strings, which no convolution writes: see test_strings. Keras cannot run Equalization in a model.
WITHOUT_A_ROW = {"StringLookup", "Equalization"}

# Elementwise ops that are defined everywhere; those that want other numbers.
UNARY = (
    "absolute angle arcsinh arctan cbrt ceil conjugate copy cos cosh deg2rad empty_like erf erfc exp exp2 expm1 fabs "
    "floor i0 imag isfinite isinf isnan isneginf isposinf isreal nan_to_num negative ones_like rad2deg real round "
    "sign signbit sin sinc sinh square tan tanh trunc relu relu6 sigmoid sparse_sigmoid softplus softsign soft_shrink "
    "sparse_plus silu squareplus log_sigmoid leaky_relu hard_sigmoid hard_silu elu selu gelu celu stop_gradient "
    "tanh_shrink hard_tanh hard_shrink zeros_like"
).split()
POSITIVE = "log1p reciprocal rsqrt sqrt log log2 log10".split()
FRACTIONS = "arccos arcsin arctanh erfinv".split()
BINARY = (
    "add arctan2 divide divide_no_nan equal floor_divide fmax fmin fmod greater greater_equal heaviside hypot isclose "
    "less less_equal logaddexp logaddexp2 maximum minimum mod multiply nextafter not_equal power subtract true_divide"
).split()
WHOLE_NUMBERS = (
    "bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor gcd lcm left_shift right_shift"
)
LOGICAL = "logical_and logical_or logical_xor".split()
# Reductions, which are done over positions here; test_movement.py does them over channels.
REDUCTIONS = (
    "all any argmax argmin count_nonzero logsumexp max mean median min nanargmax nanargmin nanmax nanmean nanmedian "
    "nanmin nanprod nanstd nansum nanvar norm prod ptp std sum var"
).split()
ALONG = "argsort cumprod cumsum log_softmax nancumprod nancumsum normalize softmax sort sparsemax".split()


def integers(x):
    return ops.cast(ops.relu(4 * x), "int32")


def swapped(x):
    return ops.transpose(x, (0, 3, 1, 2))


OPERATIONS = {
    **{name: (2, lambda x, f=name: getattr(ops, f)(x)) for name in UNARY},
    **{name: (2, lambda x, f=name: getattr(ops, f)(ops.absolute(x) + 0.5)) for name in POSITIVE},
    **{name: (2, lambda x, f=name: getattr(ops, f)(ops.tanh(x) * 0.5)) for name in FRACTIONS},
    **{name: (2, lambda x, f=name: getattr(ops, f)(ops.absolute(x), ops.absolute(branch(x)) + 0.5)) for name in BINARY},
    **{
        name: (2, lambda x, f=name: getattr(ops, f)(integers(x), integers(branch(x)))) for name in WHOLE_NUMBERS.split()
    },
    **{name: (2, lambda x, f=name: getattr(ops, f)(x > 0.2, branch(x) > 0)) for name in LOGICAL},
    **{name: (2, lambda x, f=name: getattr(ops, f)(x, axis=1)) for name in REDUCTIONS},
    **{name: (2, lambda x, f=name: getattr(ops, f)(x, axis=2)) for name in ALONG},
    "arccosh": (2, lambda x: ops.arccosh(ops.absolute(x) + 1.5)),
    "bitwise_invert": (2, lambda x: ops.bitwise_invert(integers(x))),
    "bitwise_not": (2, lambda x: ops.bitwise_not(integers(x))),
    "logical_not": (2, lambda x: ops.logical_not(x > 0)),
    "ldexp": (2, lambda x: ops.ldexp(x, integers(branch(x)))),
    "polar": (2, lambda x: ops.real(ops.polar(ops.absolute(x), branch(x)))),
    "digitize": (2, lambda x: ops.digitize(x, np.array([-0.5, 0.0, 0.5]))),
    "full_like": (2, lambda x: x * ops.full_like(x, 2.0)),
    "clip": (2, lambda x: ops.clip(x, -0.5, 0.7)),
    "threshold": (2, lambda x: ops.threshold(x, 0.1, 0.2)),
    "cast": (2, lambda x: ops.cast(ops.cast(x, "float16"), "float32")),
    "saturate_cast": (2, lambda x: ops.saturate_cast(3 * x, "int8")),
    "convert_to_tensor": (2, lambda x: ops.convert_to_tensor(x)),
    "where": (2, lambda x: ops.where(x > 0.1, branch(x), 0.5)),
    "select": (2, lambda x: ops.select([x > 0.5, x < 0], [x, branch(x)], 0.25)),
    # Moving.
    "concatenate": (2, lambda x: ops.concatenate([x, branch(x)], axis=-1)),
    "append": (2, lambda x: ops.append(x, branch(x), axis=-1)),
    "hstack": (2, lambda x: ops.hstack([x, branch(x)])),
    "dstack": (1, lambda x: ops.dstack([x, 2 * x])),
    "stack": (2, lambda x: ops.stack([x, branch(x)], axis=-1)),
    "unstack": (2, lambda x: ops.unstack(x, axis=1)[2]),
    "reshape": (2, lambda x: ops.reshape(x, (-1, 36, 8))),
    "expand_dims": (2, lambda x: ops.expand_dims(x, 1)),
    "squeeze": (2, lambda x: ops.squeeze(layers.GlobalMaxPooling2D(keepdims=True)(x), (1, 2))),
    "transpose": (2, lambda x: ops.transpose(x, (0, 3, 2, 1))),
    "swapaxes": (2, lambda x: ops.swapaxes(x, 1, -1)),
    "moveaxis": (2, lambda x: ops.moveaxis(x, -1, 1)),
    "get_item": (2, lambda x: x[:, 1, None, ::2, 1:7]),
    "slice": (2, lambda x: ops.slice(x, (0, 1, 0, 2), (-1, 3, 6, 5))),
    "take": (2, lambda x: ops.take(x, [6, 0, 1, 1, 4, 3], axis=-1)),
    "split": (2, lambda x: ops.concatenate(ops.split(x, [3, 7], axis=-1)[:2], axis=1 + 2)),
    "array_split": (2, lambda x: ops.concatenate(ops.array_split(x, 3, axis=-1)[::-1], axis=-1)),
    "hsplit": (2, lambda x: ops.hsplit(x, 2)[1]),
    "dsplit": (1, lambda x: ops.multiply(*ops.dsplit(x, 2))),
    "flip": (2, lambda x: ops.flip(x, axis=(1, -1))),
    "fliplr": (1, lambda x: ops.fliplr(x)),
    "roll": (2, lambda x: ops.roll(x, (3, 1), axis=(3, 1))),
    "rot90": (2, lambda x: ops.rot90(x, 3, axes=(1, 3))),
    "repeat": (2, lambda x: ops.repeat(ops.repeat(x, 2, axis=-1), (1, 2, 0, 1, 1, 1), axis=1)),
    "tile": (2, lambda x: ops.tile(x, (1, 1, 2, 2))),
    "pad": (2, lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 2), (3, 1)), constant_values=0.5)),
    "glu": (2, lambda x: ops.glu(x)),
    "tril": (2, lambda x: ops.tril(swapped(x))),
    "triu": (2, lambda x: ops.triu(swapped(x), 1)),
    # Along an axis.
    "average": (2, lambda x: ops.average(x, axis=1)),
    "amax": (2, lambda x: ops.amax(x, axis=(1, 2))),
    "amin": (2, lambda x: ops.amin(x, axis=2)),
    "quantile": (2, lambda x: ops.quantile(x, 0.3, axis=1)),
    "percentile": (2, lambda x: ops.percentile(x, 30.0, axis=1)),
    "nanquantile": (2, lambda x: ops.nanquantile(x, 0.3, axis=1)),
    "nanpercentile": (2, lambda x: ops.nanpercentile(x, 30.0, axis=1)),
    "moments": (2, lambda x: ops.concatenate(ops.moments(x, axes=[1]), axis=-1)),
    "diff": (2, lambda x: ops.diff(x, axis=1)),
    "trapezoid": (2, lambda x: ops.trapezoid(x, axis=1)),
    "top_k": (2, lambda x: ops.top_k(swapped(x), 2)[0]),
    # Images.
    "max_pool": (2, lambda x: ops.max_pool(x, 2, padding="same")),
    "average_pool": (2, lambda x: ops.average_pool(x, 3, 1, padding="same")),
    "adaptive_max_pool": (2, lambda x: ops.adaptive_max_pool(swapped(x), (2, 2), data_format="channels_first")),
    "adaptive_average_pool": (2, lambda x: ops.adaptive_average_pool(swapped(x), (2, 3), data_format="channels_first")),
    "depth_to_space": (2, lambda x: branch(ops.depth_to_space(x, 2))),
    "space_to_depth": (2, lambda x: ops.space_to_depth(x, 2)),
    "resize": (2, lambda x: ops.image.resize(x, (4, 9))),
    "crop_images": (2, lambda x: ops.image.crop_images(x, 1, 1, target_height=3, target_width=4)),
    "pad_images": (2, lambda x: ops.image.pad_images(x, 1, 0, target_height=8, target_width=7)),
    "gaussian_blur": (2, lambda x: ops.image.gaussian_blur(x)),
    "sobel_edges": (2, lambda x: ops.image.sobel_edges(x)),
    "affine_transform": (2, lambda x: ops.image.affine_transform(x, np.array([[1, 0.1, 0, 0, 1, 0, 0, 0]] * 2))),
    "perspective_transform": (
        2,
        lambda x: ops.image.perspective_transform(
            x, np.array([[[0.0, 0], [0, 5], [5, 0], [5, 5]]] * 2), np.array([[[0.0, 1], [0, 5], [4, 0], [5, 4]]] * 2)
        ),
    ),
    "extract_patches": (2, lambda x: ops.image.extract_patches(x, 3, strides=1, padding="same")),
}
# Ops that want another input than a convolution on an unknown batch gives; see the tests below.
OPERATIONS_ELSEWHERE = {"BroadcastTo", "Unfold", "Fold", "DotProductAttention", "Einsum", "Matmul"}
# Reads all channels together, and none may go.
PROTECTING = {"LayerNormalization", "Masking", "Softmax"}
PROTECTING |= {"RandAugment", "RandomColorJitter", "RandomGrayscale", "RandomHue", "RandomSaturation"}
# TensorFlow has no kernel for these in float64 on a CPU.
FLOAT32_ONLY = {"MaxPooling3D", "AveragePooling3D", "AdaptiveMaxPooling3D", "AdaptiveAveragePooling3D", "cast"}
# Keras computes some of it in float32, whatever the model's type: images, the scale of attention.
PARTLY_FLOAT32 = {"Resizing", "CenterCrop", "Resize", "AffineTransform", "PerspectiveTransform"}
PARTLY_FLOAT32 |= {"MultiHeadAttention", "GroupedQueryAttention"}


def branch(x):
    return layers.Conv2D(x.shape[-1], 3, padding="same")(x)


def branch1(x):
    return layers.Conv1D(x.shape[-1], 3, padding="same")(x)


def skip_if_keras_cannot(row, batch: int | None = None) -> None:
    """Older versions of Keras have operations that they cannot build or run themselves."""
    if tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15):
        return
    try:
        outputs(built(row, batch))
    except Exception as error:
        pytest.skip(f"Keras {keras.__version__} cannot run it: {error}")


def built(row, batch: int | None = None) -> keras.Model:
    """A stem of eight filters, the row, a head."""
    rank, body = row
    convolution = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    inputs = keras.Input((6,) * rank + (3,), batch_size=batch)
    x = convolution(8, 3, padding="same", name="stem")(inputs)
    y = body(layers.Activation("linear")(x))
    y = y if y.dtype == x.dtype else ops.cast(y, x.dtype)
    return shaken(keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(y))))


def assert_equal(model: keras.Model, stripped: keras.Model, name: str) -> None:
    if name in PARTLY_FLOAT32:
        assert difference(model, stripped) <= 1e-5
    else:
        assert_same(model, stripped)


def checked(row, name: str, *, protects: bool = False, batch: int | None = None) -> None:
    model = built(row, batch)
    graph = tfprune.trace(model)
    assert name in {call.kind for call in graph.calls}, "the rule was not met"
    assert not graph.opaque
    plan = tfprune.select(graph, "l1", ratio=0.5, round_to=1)
    assert ("stem" in plan.channels) != protects
    result = tfprune.strip(model, plan, verify=False)
    tfprune.soft_prune(model, plan)
    by_weights = tfprune.strip(model, verify=False)
    for stripped in (result.model, by_weights.model):
        assert_equal(model, stripped, name)
        assert (parameters(stripped) < parameters(model)) == bool(plan)
    for layer, gone in plan.channels.items():
        own = layer.partition("/")[0]
        before, left = (m.get_layer(own).weights[-1].shape[-1] for m in (model, result.model))
        width = graph.group(layer).width
        assert left * width == before * (width - len(gone))


@pytest.mark.parametrize("floatx", ["float32", "float64"])
@pytest.mark.parametrize("name", ROWS)
def test_layer(name, floatx):
    if not hasattr(layers, name) and name != "LayerScale":
        pytest.skip("this Keras has none")
    if floatx == "float64" and name in FLOAT32_ONLY:
        pytest.skip("TensorFlow has no such kernel")
    with floats(floatx):
        checked(ROWS[name], name, protects=name in PROTECTING)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_layer_that_has_tests_of_its_own(name):
    with floats("float64"):
        model = built(ELSEWHERE[name])
        graph = tfprune.trace(model)
        assert name in {call.kind for call in graph.calls} and not graph.opaque
        plan = tfprune.select(graph, "l1", ratio=0.5, round_to=1)
        result = tfprune.strip(model, plan, verify=False)
        tfprune.soft_prune(model, plan)
        assert_equal(model, result.model, name)
        assert parameters(result.model) < parameters(model)


def class_name(function: str) -> str:
    return "".join(part.capitalize() for part in function.split("_"))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name):
    if not hasattr(ops, name) and not hasattr(ops.image, name) and name != "get_item":
        pytest.skip("this Keras has none")
    with floats("float32" if name in FLOAT32_ONLY else "float64"):
        skip_if_keras_cannot(OPERATIONS[name])
        checked(OPERATIONS[name], class_name(name))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("BroadcastTo", (2, lambda x: ops.broadcast_to(x[:, :1], (2, 5, 6, 8)))),
        ("Unfold", (2, lambda x: ops.unfold(swapped(x), 3, padding=1))),
        (
            "Fold",
            (2, lambda x: ops.fold(ops.reshape(swapped(ops.repeat(x, 4, axis=-1))[:, :, :2, :2], (2, 32, 4)), 3, 2)),
        ),
    ],
)
def test_operation_on_a_batch_of_known_size(name, row):
    with floats("float64"):
        skip_if_keras_cannot(row, 2)
        checked(row, name, batch=2)


def test_strings():
    """Lookups of strings are followed as what they are: nothing that a convolution could have written."""
    words = keras.Input((4,), dtype="string")
    image = keras.Input((4, 4, 3))
    numbers = layers.StringLookup(vocabulary=["a", "b"])(words)
    x = layers.Conv2D(8, 1, name="stem")(image)
    x = layers.GlobalMaxPooling2D()(x)
    x = layers.Concatenate()([x, ops.cast(numbers, "float32")])
    graph = tfprune.trace(keras.Model([image, words], layers.Dense(2)(x)))
    assert not graph.opaque and graph.group("stem").prunable


@pytest.mark.parametrize("activation", ["mish", "celu", "exponential", "log_sigmoid"])
def test_activation_argument(activation):
    with floats("float64"):
        checked((2, lambda x: layers.Conv2D(6, 1, activation=activation)(x)), "Conv2D")


def test_every_rule_has_a_row():
    registered = {cls.__name__ for cls in lowering._RULES if cls.__module__.startswith("keras.")}
    missing = registered - set(ROWS) - set(ELSEWHERE) - WITHOUT_A_ROW
    assert not missing, f"rules without a row: {missing}"
    missing = set(lowering._OPERATION_RULES) - {class_name(name) for name in OPERATIONS} - OPERATIONS_ELSEWHERE
    assert not missing, f"rules for operations without a row: {missing}"
