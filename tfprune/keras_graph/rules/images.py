"""Images: resizing, cropping, patches, depth and space; augmentation, which does nothing at inference."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.channels.labels import Shape
from tfprune.keras_graph.lowering import Lowering, Refused, register_operation, register_rule
from tfprune.keras_graph.rules.axes import nothing_known


def _named(names: str) -> list[type]:
    """The layers of these names that this Keras has."""
    return [getattr(layers, name) for name in names.split() if hasattr(layers, name)]


def channel_of(operation: Any, shape: Shape) -> int:
    """The channel axis of an image, the batch axis not counted."""
    data_format = getattr(operation, "data_format", None) or keras.config.image_data_format()
    return 0 if data_format == "channels_first" else len(shape) - 1


def _across(operation: Any, lower: Lowering) -> tuple[int, ...] | Refused:
    """The axes of an image that hold no channels."""
    shape = lower.shape(lower.inputs[0])
    if len(lower.inputs) > 1:
        return Refused("it is given more than images")
    if len(shape) != len(lower.output_shape) or len(shape) < 2:
        return Refused("its images have no batch axis")
    channel = channel_of(operation, shape)
    return tuple(axis for axis in range(len(shape)) if axis != channel)


def _moved(operation: Any, lower: Lowering, **settings: Any):
    axes = _across(operation, lower)
    if isinstance(axes, Refused):
        return axes
    return lower.spatial(lower.inputs[0], lower.output_shape, axes=axes, **settings)


@register_rule(*_named("CenterCrop RandomCrop"))
@register_operation("CropImages", "MaxPool", "AveragePool", "AdaptiveMaxPool", "AdaptiveAveragePool")
def moved(layer, lower: Lowering):
    return _moved(layer, lower)


@register_rule(*_named("Resizing"))
@register_operation("Resize")
def resized(layer, lower: Lowering):
    fills = bool(getattr(layer, "pad_to_aspect_ratio", False))
    return _moved(layer, lower, pads=fills, fill=float(getattr(layer, "fill_value", 0.0)))


@register_operation("PadImages", "GaussianBlur", "PerspectiveTransform", "AffineTransform")
def filled(operation, lower: Lowering):
    # Positions that come from outside hold one number, whatever stands beside them.
    return _moved(operation, lower, pads=True, fill=float(getattr(operation, "fill_value", 0.0) or 0.0))


@register_operation("SobelEdges")
def edges(operation, lower: Lowering):
    x = lower.inputs[0]
    shape = lower.shape(x)
    channel = channel_of(operation, shape)
    across = tuple(axis for axis in range(len(shape)) if axis != channel)
    y = lower.reshape(lower.spatial(x, shape, axes=across, function=lambda constant: 0 * constant), (*shape, 1))
    return lower.gather(y, len(shape), lambda size: np.zeros(2 * size, np.intp))


@register_rule(*_named("AutoContrast ContrastLimitedAdaptiveHistogramEqualization"))
def stretched(layer, lower: Lowering):
    return _moved(layer, lower, function=nothing_known)


@register_rule(
    *_named(
        "AugMix CutMix Equalization MixUp RandomBrightness RandomContrast RandomElasticTransform RandomErasing "
        "RandomFlip RandomGaussianBlur RandomInvert RandomPerspective RandomPosterization RandomRotation "
        "RandomSharpness RandomShear RandomTranslation RandomZoom Solarization"
    )
)
def augmentation(layer, lower: Lowering):
    axes = _across(layer, lower)
    return axes if isinstance(axes, Refused) else lower.inputs[0]


@register_rule(
    *_named("RandAugment RandomColorDegeneration RandomColorJitter RandomGrayscale RandomHue RandomSaturation")
)
def colours(layer, lower: Lowering):
    # Nothing at inference; but in training they take their channels for red, green and blue.
    axes = _across(layer, lower)
    return axes if isinstance(axes, Refused) else lower.mix(lower.inputs[0])


# ---------------------------------------------------------------------- depth and space


def _channels_last(operation: Any, lower: Lowering, value: int) -> tuple[int, bool]:
    """The value with its channels last, and whether they were first."""
    first = channel_of(operation, lower.shape(value)) == 0
    return (lower.permute(value, (1, 2, 0)) if first else value), first


def _times(size: int | None, by: int) -> int | None:
    return None if size is None else size * by


def _block_first(operation: Any, first: bool, shape: tuple[int, ...]) -> bool:
    """Whether channels count the places in a block first, as in TensorFlow; Keras' backends differ.

    Args:
        shape: of an image with two channels a place and two places a side, the batch axis in front.
    """
    tensor = keras.ops.convert_to_tensor(np.arange(math.prod(shape), dtype="float32").reshape(shape))
    moved = np.asarray(keras.ops.convert_to_numpy(operation.call(tensor)))
    return bool((moved[0, :, 0, 0] if first else moved[0, 0, 0, :])[1] == 1)


@register_operation("DepthToSpace")
def depth_to_space(operation, lower: Lowering):
    """Channel (i * block + j) * C + c of a position is channel c of place (i, j) of its block."""
    x, first = _channels_last(operation, lower, lower.inputs[0])
    block = operation.block_size
    height, width, channels = lower.shape(x)
    if channels is None:
        return Refused("how many channels it has is unknown")
    small = channels // block**2
    count = 2 * block**2
    if _block_first(operation, first, (1, count, 1, 1) if first else (1, 1, 1, count)):
        y = lower.reshape(x, (height, width, block, block, small))
    else:
        y = lower.permute(lower.reshape(x, (height, width, small, block, block)), (0, 1, 3, 4, 2))
    # All places of a block hold the same channels from here on.
    y = lower.permute(lower.as_one(y, (2, 3)), (0, 2, 1, 3, 4))
    y = lower.reshape(y, (_times(height, block), _times(width, block), small))
    return lower.permute(y, (2, 0, 1)) if first else y


@register_operation("SpaceToDepth")
def space_to_depth(operation, lower: Lowering):
    x, first = _channels_last(operation, lower, lower.inputs[0])
    block = operation.block_size
    height, width, channels = lower.shape(x)
    if channels is None:
        return Refused("how many channels it has is unknown")
    height, width = (None if size is None else size // block for size in (height, width))
    y = lower.reshape(lower.as_one(x, (0, 1)), (height, block, width, block, channels))
    # Whether the next channel of a place comes next, or the same channel of the next place: backends differ.
    tensor = np.arange(3 * block**2, dtype="float32").reshape((1, 3, block, block) if first else (1, block, block, 3))
    moved = np.asarray(keras.ops.convert_to_numpy(operation.call(keras.ops.convert_to_tensor(tensor)))).ravel()
    channel_next = tensor.ravel()[block**2 if first else 1]
    y = lower.permute(y, (0, 2, 1, 3, 4) if moved[1] == channel_next else (0, 2, 4, 1, 3))
    y = lower.reshape(y, (height, width, channels * block**2))
    return lower.permute(y, (2, 0, 1)) if first else y


def _repeated(lower: Lowering, value: int, axis: int, times: int) -> int:
    """Repeat a new axis of size 1, so that what lies along it is told apart by nothing but its place."""
    return lower.gather(value, axis, lambda size: np.tile(np.arange(size), times))


@register_operation("ExtractPatches")
def patches(operation, lower: Lowering):
    """Channel k * C + c of a patch is channel c of its k-th position."""
    x = lower.inputs[0]
    shape, result = lower.shape(x), lower.output_shape
    channel = channel_of(operation, shape)
    channels, wide = shape[channel], result[channel]
    if len(shape) != len(operation.size) + 1 or channels is None or wide is None:
        return Refused("its images have no batch axis")
    size = list(result)
    size[channel] = channels
    across = tuple(axis for axis in range(len(shape)) if axis != channel)
    y = lower.spatial(x, tuple(size), axes=across, pads=operation.padding == "same")
    y = lower.reshape(y, (*size[:channel], 1, *size[channel:]))
    return lower.reshape(_repeated(lower, y, channel, wide // channels), result)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


@register_operation("Unfold")
def unfold(operation, lower: Lowering):
    """Channel c * K + k of a patch is channel c of its k-th position."""
    x, count = lower.inputs[0], math.prod(_pair(operation.kernel_size))
    (channels, *_), (_, length) = lower.shape(x), lower.output_shape
    padded = any(_pair(operation.padding))
    y = lower.reshape(lower.as_one(x, (1, 2)), (channels, _flat(lower.shape(x)[1:])))
    y = lower.reshape(lower.spatial(y, (channels, length), axes=(1,), pads=padded), (channels, 1, length))
    return lower.reshape(_repeated(lower, y, 1, count), lower.output_shape)


@register_operation("Fold")
def fold(operation, lower: Lowering):
    x, count = lower.inputs[0], math.prod(_pair(operation.kernel_size))
    wide, length = lower.shape(x)
    channels, height, width = lower.output_shape
    if wide is None or channels is None:
        return Refused("how many channels it has is unknown")
    y = lower.as_one(lower.reshape(x, (channels, count, length)), (1,))
    y = lower.reshape(y, (channels, None if length is None else count * length))
    y = lower.spatial(y, (channels, _flat((height, width))), axes=(1,), function=lambda c: np.where(c == 0, 0, np.nan))
    return lower.reshape(y, (channels, height, width))


def _flat(sizes: Shape) -> int | None:
    return None if None in sizes else math.prod(sizes)  # type: ignore[arg-type]
