"""Soft pruning in a loop written with PyTorch and an optimizer of its own: python examples/loops/torch_loop.py"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import setting
import torch

import tfprune


def train(model, optimizer, loss, batches, epochs, pruning):
    """Train on batches that can be read again and again."""
    pruning.start(model, optimizer=optimizer, epochs=epochs)
    for _ in range(epochs):
        model.train()
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x, training=True), y).backward()
            optimizer.step()
            pruning.after_step()
        pruning.after_epoch()  # before validation and checkpoints, so that they see the zeros
    pruning.finish()


def main():
    """Train, strip, compare."""
    found = setting.digits()
    model = setting.network()
    images = torch.utils.data.TensorDataset(torch.from_numpy(found.x_train), torch.from_numpy(found.y_train).long())
    batches = torch.utils.data.DataLoader(images, batch_size=64, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruning = tfprune.SoftPruning("l2", ratio=0.5)
    train(model, optimizer, torch.nn.CrossEntropyLoss(), batches, 5, pruning)
    setting.report(model, pruning, found)


if __name__ == "__main__":
    main()
