"""The fit in PyTorch, written for speed: the data in one tensor, fused Adam, no loader."""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

NORMALIZED = Path("data/normalized")


def main() -> None:
    """Fit once and print times and accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--one-cycle", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    images, test_images = (
        torch.from_numpy(np.load(NORMALIZED / f"{split}_images.npy")).flatten(1)
        for split in ("train", "test")
    )
    labels, test_labels = (
        torch.from_numpy(np.load(NORMALIZED / f"{split}_labels.npy")).long()
        for split in ("train", "test")
    )
    model = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10))
    for layer in (model[0], model[2]):  # as Keras does it
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, eps=1e-7, fused=True)
    steps: int = args.epochs * math.ceil(len(images) / args.batch_size)
    warm_up: int = round(0.3 * steps)

    def share_of_rate(step: int) -> float:
        """The schedule of our train stage: linear from 0, then half a cosine to 0."""
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
        order = torch.randperm(len(images))
        losses, right = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for chosen in order.split(args.batch_size):
            loss, hits = scored(images[chosen], labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += loss.detach() * len(chosen)
            right += hits
        with torch.inference_mode():
            _, hits = score(test_images, test_labels)
        accuracies.append(hits.item() / len(test_labels))
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
