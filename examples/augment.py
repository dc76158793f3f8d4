"""Batches of images for training: shuffled, mirrored, moved, and mixed if wanted."""

import keras
import numpy as np


class Augmented(keras.utils.PyDataset):
    """Batches in a new order every epoch, each image mirrored or not and moved by up to 2 pixels.

    Args:
        x: (samples, height, width, channels).
        y: (samples,) class numbers, or (samples, classes).
        batch_size: samples a step.
        seed: of the order and of what happens to each image.
        mixup: mix each image and its label with another's, by a share from a Beta distribution with this parameter;
            labels must be (samples, classes). 0: not at all. Source: Zhang et al., "mixup" (arXiv:1710.09412).
    """

    def __init__(self, x, y, batch_size, seed, mixup=0.0):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size
        self.mix = keras.layers.MixUp(mixup, seed=seed) if mixup else None
        self.generator = np.random.default_rng(seed)
        self.order = self.generator.permutation(len(x))

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        x, y = self.x[rows], self.y[rows]
        mirrored = self.generator.random(len(x)) < 0.5
        x[mirrored] = x[mirrored, :, ::-1]
        padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        height, width = x.shape[1:3]
        for image, (down, right) in enumerate(self.generator.integers(0, 5, (len(x), 2))):
            x[image] = padded[image, down : down + height, right : right + width]
        if self.mix is None:
            return x, y
        mixed = self.mix({"images": x, "labels": y})
        return keras.ops.convert_to_numpy(mixed["images"]), keras.ops.convert_to_numpy(mixed["labels"])

    def on_epoch_end(self):
        """Shuffle."""
        self.order = self.generator.permutation(len(self.x))
