"""What convolutions and pools share: how their windows lie on the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keras import layers, ops

from tfprune.from_onnx.builder import Builder, LayerError
from tfprune.onnx_graph.model import Node

PADDINGS = (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
CROPPINGS = (layers.Cropping1D, layers.Cropping2D, layers.Cropping3D)


@dataclass(frozen=True)
class Window:
    """A kernel that moves over the spatial axes.

    Attributes:
        sizes: of the input, None where unknown.
        kernel, strides, dilations: by axis.
        pads: what is added before and after, by axis.
    """

    sizes: tuple[int | None, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """From the first to the last position that a kernel reads, by axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def dimensions(self) -> int:
        return len(self.kernel)

    @property
    def is_padded(self) -> bool:
        return any(map(any, self.pads))

    @property
    def is_same(self) -> bool:
        """Whether Keras' "same" pads alike."""
        wanted = [
            _same(size, reach, stride) for size, reach, stride in zip(self.sizes, self.reach, self.strides, strict=True)
        ]
        return tuple(wanted) == self.pads


def _same(size: int | None, reach: int, stride: int) -> tuple[int, int] | None:
    if size is None and stride > 1:
        return None
    missing = max(0, reach - (stride if size is None or size % stride == 0 else size % stride))
    return missing // 2, missing - missing // 2


def window_of(builder: Builder, node: Node, kernel: Sequence[int], lengthen: bool = False) -> Window:
    """The window of a convolution or pool that reads its first input.

    Args:
        lengthen: pads grow at the end where `ceil_mode` lets the last window begin inside and end outside.
    """
    sizes = builder.shape(node.inputs[0])[2:]
    count = len(kernel)
    if count > 3 or len(sizes) != count:
        raise LayerError(f"{count} spatial axes; Keras has layers for 1 to 3")
    strides = tuple(node.attributes.get("strides", (1,) * count))
    dilations = tuple(node.attributes.get("dilations", (1,) * count))
    window = Window(sizes, tuple(kernel), strides, dilations, ((0, 0),) * count)
    pads = _pads(node, window)
    if lengthen and node.attributes.get("ceil_mode"):
        pads = tuple(_lengthened(*each) for each in zip(sizes, window.reach, strides, pads, strict=True))
    if any(min(pair) < 0 for pair in pads):
        raise LayerError(f"negative pads {pads}")
    return Window(sizes, tuple(kernel), strides, dilations, pads)


def _pads(node: Node, window: Window) -> tuple[tuple[int, int], ...]:
    auto = node.attributes.get("auto_pad", b"NOTSET").decode()
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for size, reach, stride in zip(window.sizes, window.reach, window.strides, strict=True):
            pair = _same(size, reach, stride)
            if pair is None:
                raise LayerError("its pads depend on an axis of unknown size; export with fixed sizes")
            found.append(pair if auto == "SAME_UPPER" else pair[::-1])
        return tuple(found)
    count = window.dimensions
    flat = [0] * 2 * count if auto == "VALID" else list(node.attributes.get("pads", [0] * 2 * count))
    return tuple(zip(flat[:count], flat[count:], strict=True))


def _lengthened(size: int | None, reach: int, stride: int, pads: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        raise LayerError("ceil_mode over an axis of unknown size; export with fixed sizes")
    before, after = pads
    steps = -(-(size + before + after - reach) // stride)
    if steps * stride >= size + before:  # the last window has to begin on the input or on what is before it
        steps -= 1
    return before, max(after, steps * stride + reach - size - before)


def padded(builder: Builder, node: Node, tensor, window: Window, value: float = 0.0):
    """The input with what the window needs around it."""
    if not window.is_padded:
        return tensor
    if value:
        return ops.pad(tensor, [[0, 0], *map(list, window.pads), [0, 0]], constant_values=value)
    return surrounded(builder, node, tensor, window.pads)


def surrounded(builder: Builder, node: Node, tensor, pads: Sequence[tuple[int, int]]):
    """Zeros around the spatial axes."""
    pads = tuple(pads)
    layer = PADDINGS[len(pads) - 1](
        pads[0] if len(pads) == 1 else pads, name=builder.free_name(f"{node.name}_pad"), dtype=str(tensor.dtype)
    )
    return layer(tensor)
