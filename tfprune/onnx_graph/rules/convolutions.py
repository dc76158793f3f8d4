"""Conv and ConvTranspose of any rank: channels are axis 1, whatever the group."""

from __future__ import annotations

from typing import Any

from tfprune.channels.ops import Narrowing
from tfprune.onnx_graph.lowering import Edit, Lowering, Refused, register_node

_CHANNELS = 1


def pads(lower: Lowering, kernel: tuple[int, ...]) -> bool:
    """Whether zeros from outside may enter the sum."""
    says = any(lower.attribute("pads", ())) or lower.attribute("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    return says and any(size > 1 for size in kernel)


def _constants_only(lower: Lowering, transposed: bool = False) -> Refused | None:
    if not lower.fixed(1):
        return Refused("its kernel is computed")
    own, group = lower.constant_shape(1)[:2], int(lower.attribute("group", 1))
    channels, filters = (own[0], own[1] * group) if transposed else (own[1] * group, own[0])
    if lower.shape(lower.value(0))[_CHANNELS] not in (None, channels):
        return Refused(f"its kernel reads {channels} channels, and others come")
    if lower.has(2) and lower.fixed(2) and lower.constant_shape(2) != (filters,):
        return Refused("its bias is not as long as it has filters")
    return Refused("its bias is computed") if lower.has(2) and not lower.fixed(2) else None


@register_node("Conv")
def conv(lower: Lowering) -> Any:
    refused = _constants_only(lower)
    if refused is not None:
        return refused
    x, kernel, group = lower.value(0), lower.kernel(1), int(lower.attribute("group", 1))
    filters, per_group = kernel.shape[:2]
    if group < 1 or filters % group:
        return Refused(f"its {filters} filters are not {group} groups")
    common: dict[str, Any] = {
        "shape": lower.output_shape,
        "bias": lower.beside(2, 1, "bias") if lower.has(2) else None,
        "pads": pads(lower, kernel.shape[2:]),
        "positions": lower.positions(without=(_CHANNELS,)),
    }
    if group > 1 and per_group == 1:
        split = (group, filters // group, *kernel.shape[1:])
        y = lower.depthwise(x, kernel, axis=_CHANNELS, split=split, axes=(0, 1), **common)
        lower.rewrite(lambda new, edit: edit.set("group", new.shape(x)[_CHANNELS]))
        return y
    y = lower.contract(x, kernel, read=[(_CHANNELS, 1)], write=[(_CHANNELS, 0)], groups=group, **common)
    if group > 1:
        weight = lower.weight(kernel)
        lower.rewrite(lambda new, edit: edit.set("group", new.groups.get(weight, group)))
    return y


@register_node("ConvTranspose")
def conv_transpose(lower: Lowering) -> Any:
    refused = _constants_only(lower, transposed=True)
    if refused is not None:
        return refused
    x, kernel, group = lower.value(0), lower.kernel(1), int(lower.attribute("group", 1))
    common: dict[str, Any] = {
        "shape": lower.output_shape,
        "bias": lower.beside(2, 1, "bias") if lower.has(2) else None,
        # How many kernel entries meet at an output differs from one position to the next.
        "pads": any(size > 1 for size in (*kernel.shape[2:], *lower.attribute("strides", ()))),
        "positions": lower.read_positions(0, without=(_CHANNELS,)),
    }
    if group == 1:
        return lower.contract(x, kernel, read=[(_CHANNELS, 0)], write=[(_CHANNELS, 1)], **common)
    if group != kernel.shape[0]:
        return Refused("it is transposed and grouped")
    y = lower.depthwise(x, kernel, axis=_CHANNELS, split=kernel.shape, axes=(0, 1), **common)

    def write(new: Narrowing, edit: Edit) -> None:
        edit.set("group", new.shape(x)[_CHANNELS])

    lower.rewrite(write)
    return y
