"""The same batches for Keras and PyTorch: numpy alone, and nothing but (seed, epoch, step) decides what is in one.

Each training image is padded by 4 pixels, cut out again somewhere, and mirrored or not; a batch of an epoch is the same
in every framework, for every arm, and after a run was killed.
"""

import numpy as np

PAD = 4


class Images:
    """Images in [0, 1] made to mean 0 and deviation 1 by channel, and their labels.

    Args:
        path: an .npz file with x_train (n, 32, 32, 3) uint8, y_train, x_test, y_test.
        train, test: use the first so many; None for all.
        batch_size: images a step; what does not fill the last batch of an epoch is left out.
        seed: of the order and of what happens to each image.
    """

    def __init__(self, path, train=None, test=None, batch_size=128, seed=0):
        with np.load(path) as arrays:
            x, self.y = arrays["x_train"][:train], arrays["y_train"][:train].astype("int64").ravel()
            x_test, self.y_test = arrays["x_test"][:test], arrays["y_test"][:test].astype("int64").ravel()
        self.mean, self.deviation = (getattr(x, what)((0, 1, 2)) / 255 for what in ("mean", "std"))
        self.x, self.x_test = self._scaled(x), self._scaled(x_test)
        self.batch_size, self.seed = batch_size, seed
        self.steps = max(1, len(self.x) // batch_size)

    def _scaled(self, x):
        return ((x / np.float32(255) - self.mean) / self.deviation).astype("float32")

    def order(self, epoch):
        """The rows of an epoch, shuffled."""
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.x))

    def batch(self, epoch, step, order=None):
        """(images, labels) of a step."""
        order = self.order(epoch) if order is None else order
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        generator = np.random.default_rng((self.seed, epoch, step))
        x = np.pad(self.x[rows], ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, self.x.shape[1:3], axis=(1, 2))
        down, right = generator.integers(0, 2 * PAD + 1, (2, len(rows)))
        x = np.moveaxis(windows[np.arange(len(rows)), down, right], 1, -1)
        mirrored = generator.random(len(rows)) < 0.5
        x = np.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
        return np.ascontiguousarray(x), self.y[rows]
