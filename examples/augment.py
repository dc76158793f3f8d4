"""Batches of images for training: shuffled, mirrored, moved, and mixed if wanted."""

import keras
import numpy as np


class Augmented(keras.utils.PyDataset):
    """Batches in a new order every epoch, each image mirrored or not and moved by up to 2 pixels.

    What a batch holds depends on the seed, the epoch and its number alone: workers may make batches in any order, and
    `tfprune.Resume(..., data=batches)` finds the same ones again after a kill.

    Args:
        x: (samples, height, width, channels).
        y: (samples,) class numbers, or (samples, classes).
        batch_size: samples a step.
        seed: of the order and of what happens to each image, a whole number from 0 on.
        mixup: mix each image and its label with another's, by a share from a Beta distribution with this parameter;
            labels must be (samples, classes). 0: not at all. Source: Zhang et al., "mixup" (arXiv:1710.09412).
    """

    def __init__(self, x, y, batch_size, seed, mixup=0.0):
        super().__init__()
        self.x, self.y, self.batch_size, self.seed, self.mixup = x, y, batch_size, seed, mixup
        self.set_epoch(0)

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def set_epoch(self, epoch):
        """Shuffle for an epoch, from 0 on."""
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.x))

    def __getitem__(self, index):
        generator = np.random.default_rng([self.seed, self.epoch, index])
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        x, y = self.x[rows], self.y[rows]
        mirrored = generator.random(len(x)) < 0.5
        x[mirrored] = x[mirrored, :, ::-1]
        padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        height, width = x.shape[1:3]
        for image, (down, right) in enumerate(generator.integers(0, 5, (len(x), 2))):
            x[image] = padded[image, down : down + height, right : right + width]
        if not self.mixup:
            return x, y
        share = generator.beta(self.mixup, self.mixup, len(x)).astype(x.dtype)
        partner = generator.permutation(len(x))
        return _mixed(x, x[partner], share), _mixed(y, y[partner], share)

    def on_epoch_end(self):
        """Shuffle."""
        self.set_epoch(self.epoch + 1)


def _mixed(one, other, share):
    share = share.reshape(-1, *[1] * (one.ndim - 1))
    return share * one + (1 - share) * other
