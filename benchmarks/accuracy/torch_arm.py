"""Torch-Pruning on the same model, images, epochs and learning rates. Runs in an environment that has it.

    pip install torch torch-pruning
    python benchmarks/accuracy/torch_arm.py --weights=trained.npz --dataset=cifar10.npz --output=group_norm.json

`benchmarks/accuracy/run.py --torch_python=...` calls it so. The weights are those that the Keras arms start from; that
both networks are the same is checked by their accuracy, which must be equal before pruning. Two methods, with the
settings of its authors' own CIFAR-10 script (global, one channel at a time until enough has gone, the classifier left
alone): `group_norm` prunes first and trains for all epochs; `group_sl` (DepGraph) trains sparsely for half of them,
prunes, and trains on.

Weight decay is taken as Keras takes it, apart from the momentum; batches come from `images.py`.
"""

import argparse
import json
import math
import os
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from images import Images
from torch import nn
from torch.nn import functional

MOMENTUM, STEPS = 0.9, 400


def main():
    flags = parsed()
    torch.manual_seed(flags.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = Images(flags.dataset, flags.train_samples, flags.test_samples, flags.batch_size, flags.seed)
    model = ResNet(flags.depth).to(device, memory_format=torch.channels_last)
    load(model, flags.weights)
    start, whole = time.time(), macs(model, device)
    before = accuracy(model, images, device)
    print(f"before pruning {before:.2%}", flush=True)
    training = Training(images, flags, device)
    if flags.method == "group_sl":
        pruner = pruner_of(model, "max", flags.regularization, device)
        training(model, flags.epochs // 2, pruner)
    else:
        pruner = pruner_of(model, "mean", 0.0, device)
    while macs(model, device) > flags.macs * whole and pruner.current_step < STEPS:
        pruner.step()
    at_once, left = accuracy(model, images, device), macs(model, device)
    print(f"{left / whole:.2%} of the MACs left, {at_once:.2%}", flush=True)
    training(model, flags.epochs - training.done)
    result = {
        "accuracy": accuracy(model, images, device),
        "accuracy_before": before,
        "accuracy_when_cut": at_once,
        "macs": left,
        "macs_before": whole,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.time() - start),
        "epochs": training.done,
        "curve": training.curve,
        "settings": {
            **{name: value for name, value in vars(flags).items() if name not in ("dataset", "weights", "output")},
            "torch": torch.__version__,
            "torch_pruning": metadata.version("torch-pruning"),
        },
    }
    scratch = Path(f"{flags.output}.part")
    scratch.write_text(json.dumps(result, indent=1))
    os.replace(scratch, flags.output)
    print(f"{flags.method}: {result['accuracy']:.2%}", flush=True)


def parsed():
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--method", choices=("group_norm", "group_sl"), default="group_norm")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--train_samples", type=int)
    parser.add_argument("--test_samples", type=int)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--first_epoch", type=int, default=0, help="Where in the order of the data it begins.")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--decay", type=float, default=5e-3)
    parser.add_argument("--regularization", type=float, default=5e-4)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """`examples/models/resnet.py`'s narrow ResNets, module by module."""

    def __init__(self, depth):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for stage in range(3):
            blocks = []
            for index in range((depth - 2) // 6):
                blocks.append(Block(inputs, 16 * 2**stage, 2 if stage and not index else 1))
                inputs = 16 * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def load(model, path):
    """Copy the Keras model's weights; an underscore there is a dot here."""
    arrays = dict(np.load(path))
    own = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias",
           "moving_mean": "running_mean", "moving_variance": "running_var"}  # fmt: skip
    names = {name.replace(".", "_"): name for name, _ in model.named_modules()}
    state = model.state_dict()
    for key, array in arrays.items():
        layer, _, kind = key.rpartition("/")
        if kind == "kernel":
            array = array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
        target = state[f"{names[layer]}.{own[kind]}"]
        if tuple(target.shape) != array.shape:
            raise SystemExit(f"{key} has shape {array.shape}, and {tuple(target.shape)} is needed")
        target.copy_(torch.tensor(array))
    missing = [name for name in state if not name.endswith("num_batches_tracked")]
    if len(missing) != len(arrays):
        raise SystemExit(f"{path} holds {len(arrays)} arrays, and the network has {len(missing)}")


def pruner_of(model, normalizer, regularization, device):
    """Torch-Pruning's GroupNormPruner as its CIFAR-10 script makes it."""
    return torch_pruning.pruner.GroupNormPruner(
        model,
        torch.zeros(1, 3, 32, 32, device=device),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer=normalizer),
        reg=regularization,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[model.fc],
    )


class Training:
    """SGD with momentum; the learning rate falls along a cosine in each stage."""

    def __init__(self, images, flags, device):
        self.images, self.flags, self.device = images, flags, device
        self.done, self.curve = 0, []

    def __call__(self, model, epochs, pruner=None):
        """Train; with a pruner, with its penalty."""
        flags, images, step = self.flags, self.images, 0
        optimizer = torch.optim.SGD(model.parameters(), flags.rate, momentum=MOMENTUM)
        if pruner is not None:
            pruner.update_regularizer()
        for _ in range(epochs):
            model.train()
            epoch, start, right, losses = flags.first_epoch + self.done, time.time(), 0, 0.0
            order = images.order(epoch)
            for index in range(images.steps):
                x, y = images.batch(epoch, index, order)
                rate = flags.rate * (1 + math.cos(math.pi * step / (epochs * images.steps))) / 2
                for group in optimizer.param_groups:
                    group["lr"] = rate
                answers, y = model(on(x, self.device)), torch.tensor(y, device=self.device)
                loss = functional.cross_entropy(answers, y)
                optimizer.zero_grad()
                loss.backward()
                if pruner is not None:
                    pruner.regularize(model)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(1 - rate * flags.decay)
                optimizer.step()
                right, losses, step = right + (answers.argmax(1) == y).sum().item(), losses + loss.item(), step + 1
            self.done += 1
            count = images.steps * images.batch_size
            row = {"epoch": epoch, "stage": "sparse" if pruner else "training", "loss": round(losses / images.steps, 4),
                   "accuracy": round(right / count, 4),
                   "val_accuracy": round(accuracy(model, images, self.device, 1000), 4)}  # fmt: skip
            self.curve.append(row)
            print(f"  {row} {time.time() - start:.0f} s", flush=True)


def on(x, device):
    """Images (batch, height, width, channels) as a tensor that keeps its memory order."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).to(device)


@torch.no_grad()
def accuracy(model, images, device, count=None):
    """The fraction of the test images that is right."""
    model.eval()
    answers = [model(on(x, device)).argmax(1).cpu().numpy()
               for x in np.array_split(images.x_test[:count], max(1, len(images.x_test[:count]) // 500))]  # fmt: skip
    return float((np.concatenate(answers) == images.y_test[:count]).mean())


@torch.no_grad()
def macs(model, device):
    """Multiply-adds of kernels for one image, as `tfprune.cost` counts them."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        total += module.weight.numel() * positions

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = model.training
    model.eval()(torch.zeros(1, 3, 32, 32, device=device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return total


if __name__ == "__main__":
    main()
