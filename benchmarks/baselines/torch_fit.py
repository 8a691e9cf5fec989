"""The fit of the MLP or the CNN in PyTorch: data in tensors, fused Adam, no data loader."""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

NORMALIZED = Path("data/normalized")


def mlp() -> nn.Sequential:
    """Build the tutorial's network."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10))


def cnn() -> nn.Sequential:
    """Build our CNN as in params.yaml: pooling before batch normalization, no bias."""
    layers: list[nn.Module] = []
    for channels, filters in ((1, 32), (32, 64), (64, 128)):
        layers += [
            nn.Conv2d(channels, filters, 3, padding=1, bias=False),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.BatchNorm2d(filters, eps=1e-3),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(128 * 4 * 4, 10))


class Augmentation:
    """Translation by at most one pixel in each direction, and horizontal flips, by indexing.

    As in Keras, the translation is uniform from -1 to 1 pixel and then rounded.

    Args:
        images: Shape (n, 1, 28, 28), float32.
        background: The intensity of the edges.
        flip: Whether half of the images are flipped.
    """

    def __init__(self, images: torch.Tensor, background: float, *, flip: bool) -> None:
        self.padded = nn.functional.pad(images, (1, 1, 1, 1), value=background)[:, 0]
        self.flip = flip

    def __call__(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return a batch of augmented images, shape (n, 1, 28, 28)."""
        shifts = (2 * torch.rand(2, len(chosen), 1) - 1).round().long() + 1
        rows, columns = shifts + torch.arange(28)
        if self.flip:
            flipped = torch.rand(len(chosen), 1) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        return self.padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


def main() -> None:
    """Fit once, and print times and accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--one-cycle", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cnn", action="store_true")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    images, test_images = (
        torch.from_numpy(np.load(NORMALIZED / f"{split}_images.npy"))[:, None]
        for split in ("train", "test")
    )
    labels, test_labels = (
        torch.from_numpy(np.load(NORMALIZED / f"{split}_labels.npy")).long()
        for split in ("train", "test")
    )
    model = cnn() if args.cnn else mlp()
    for weights in model.parameters():  # as in Keras
        if weights.ndim > 1:
            nn.init.xavier_uniform_(weights)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    # The background of MNIST and Fashion-MNIST is 0, and min_max keeps it.
    augmented = Augmentation(images, 0.0, flip=args.flip) if args.cnn else images.__getitem__
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, eps=1e-7, fused=True)
    steps: int = args.epochs * math.ceil(len(images) / args.batch_size)
    warm_up: int = round(0.3 * steps)

    def share_of_rate(step: int) -> float:
        """Return the learning rate's share as in the train stage: linear warmup, cosine decay."""
        if not args.one_cycle:
            return 1.0
        if step < warm_up:
            return step / warm_up
        return (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_rate)

    def score(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(images)
        return nn.functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).sum()

    scored = torch.compile(score) if args.compile else score
    start = time.perf_counter()
    ends: list[float] = []
    accuracies: list[float] = []
    for _ in range(args.epochs):
        model.train()
        order = torch.randperm(len(images))
        losses, right = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for chosen in order.split(args.batch_size):
            loss, hits = scored(augmented(chosen), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += loss.detach() * len(chosen)
            right += hits
        model.eval()
        with torch.inference_mode():
            parts = zip(test_images.split(1_000), test_labels.split(1_000), strict=True)
            correct = sum(score(*part)[1].item() for part in parts)
        accuracies.append(correct / len(test_labels))
        ends.append(time.perf_counter())
        loss, accuracy = losses.item() / len(images), right.item() / len(images)
        print(f"loss {loss:.4f}  accuracy {accuracy:.4f}  {accuracies[-1]:.4f}")
    result = {
        "seconds": ends[-1] - start,
        "epochs": np.diff([start, *ends]).tolist(),
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
