"""What Keras layers and operations ONNX's operators become; one file a family."""

from tfprune.from_onnx.layers import (  # noqa: F401  (each registers its operators)
    convolutions,
    elementwise,
    matrices,
    moving,
    normalization,
    pooling,
    reductions,
    resizing,
)
