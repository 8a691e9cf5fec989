"""Generate image files from MNIST that resemble drawn, photographed and saved digits."""

import csv
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from scipy import ndimage

SCALE = 10  # pixels of a file per pixel of MNIST
PAPER, PEN = 230, 40  # gray levels
Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def enlarge(image: np.ndarray) -> np.ndarray:
    """Enlarge an image of shape (h, w), uint8, by `SCALE`, with smooth edges."""
    height, width = (side * SCALE for side in image.shape)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _smooth(distance: np.ndarray) -> np.ndarray:
    """Draw the pixels at positive distances (in pixels), antialiased."""
    return (255 * np.clip(distance + 0.5, 0, 1)).astype(np.uint8)


def thicken(image: np.ndarray) -> np.ndarray:
    """Widen strokes by 1.6 pixels of MNIST: about half of their usual width."""
    outside = ndimage.distance_transform_edt(enlarge(image) < 128)
    return _smooth(0.8 * SCALE - outside)


def thin(image: np.ndarray) -> np.ndarray:
    """Halve the width of strokes."""
    inside = ndimage.distance_transform_edt(enlarge(image) >= 128)
    half = ndimage.maximum_filter(inside, 3 * SCALE) / 2
    return _smooth(np.where(inside > 0, inside - half, -1))


def on_paper(image: np.ndarray) -> np.ndarray:
    """Turn light on dark into a dark pen on light paper."""
    return (PAPER - (PAPER - PEN) / 255 * image).astype(np.uint8)


def light(image: np.ndarray, rng: np.random.Generator, least: float) -> np.ndarray:
    """Light an image from a random side; the opposite side gets a share `least` of the light."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (np.linspace(-1, 1, side) for side in image.shape)
    ramp = np.sin(angle) * y[:, None] + np.cos(angle) * x
    lit: np.ndarray = image * np.interp(ramp, [ramp.min(), ramp.max()], [least, 1])
    return lit.astype(np.uint8)


def add_noise(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Add Gaussian noise with a standard deviation in gray levels."""
    return (image + rng.normal(0, deviation, image.shape)).clip(0, 255).astype(np.uint8)


def move(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Place an image on a canvas, off center by a share of the canvas in a random direction.

    The canvas is as small as possible: with a share of 1/3, three times as large as the image.
    """
    side = round(max(image.shape) / (1 - 2 * share))
    down, right = rng.permutation([rng.choice([-1, 1]), rng.choice([-1, 0, 1])])
    canvas = np.full((side, side), image[0, 0], np.uint8)
    top, left = ((side - length) // 2 for length in image.shape)
    top, left = top + round(down * share * side), left + round(right * share * side)
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def _combine(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drawn = (enlarge, thicken, thin)[rng.integers(3)](image)
    lit = light(move(on_paper(drawn), rng, 0.15), rng, 0.7)
    return add_noise(lit, rng, 8)


VARIANTS: dict[str, Draw] = {
    "unchanged": lambda image, rng: image,
    "enlarged 10 times": lambda image, rng: enlarge(image),
    "thicker strokes": lambda image, rng: thicken(image),
    "thinner strokes": lambda image, rng: thin(image),
    "dark on light": lambda image, rng: on_paper(enlarge(image)),
    "gradient lighting": lambda image, rng: light(on_paper(enlarge(image)), rng, 0.3),
    "noise": lambda image, rng: add_noise(on_paper(enlarge(image)), rng, 25),
    "translated by a third": lambda image, rng: move(on_paper(enlarge(image)), rng, 1 / 3),
    "RGBA, transparent": lambda image, rng: enlarge(image),
    "JPEG, quality 50": lambda image, rng: on_paper(enlarge(image)),
    "EXIF rotation": lambda image, rng: on_paper(enlarge(image)),
    "combined, each weaker": _combine,
}


def _save(path: Path, variant: str, drawn: np.ndarray, rng: np.random.Generator) -> Path:
    """Save a drawn image in the file format of its variant."""
    if variant == "RGBA, transparent":  # a dark pen on a transparent background
        pen = np.full_like(drawn, PEN)
        Image.fromarray(np.dstack([pen, pen, pen, drawn])).save(path := path.with_suffix(".png"))
    elif variant in ("EXIF rotation", "combined, each weaker"):
        turns, orientation = ((1, 6), (2, 3), (3, 8))[rng.integers(3)]
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        turned = Image.fromarray(np.rot90(drawn, turns))
        turned.save(path := path.with_suffix(".jpg"), quality=75, exif=exif)
    elif variant.startswith("JPEG"):
        Image.fromarray(drawn).save(path := path.with_suffix(".jpg"), quality=50)
    else:
        Image.fromarray(drawn).save(path := path.with_suffix(".png"))
    return path


def write(folder: Path, variant: str, images: np.ndarray) -> list[Path]:
    """Write an image file for each digit; random choices are seeded.

    Args:
        folder: Destination; must not exist.
        variant: A key of `VARIANTS`.
        images: Light on dark, shape (n, h, w), uint8.

    Returns:
        The files, in the order of the images.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    draw = VARIANTS[variant]
    return [
        _save(folder / str(number), variant, draw(image, rng), rng)
        for number, image in enumerate(images)
    ]


def accuracies(
    project: Path,
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray,
    variables: Mapping[str, str],
) -> dict[str, float]:
    """Measure the accuracy of a project's model on each variant with `python -m tools.classify`.

    Args:
        project: A project with data/model.onnx, trained on MNIST.
        folder: Destination of the image files; must not exist.
        images: Light on dark, shape (n, h, w), uint8.
        labels: Shape (n,), uint8.
        variables: The environment of the command.

    Returns:
        Accuracy by name of the variant.
    """
    found = {}
    for variant in VARIANTS:
        write(folder / variant, variant, images)
        command = [sys.executable, "-m", "tools.classify", "--csv", str(folder / variant)]
        done = subprocess.run(
            command, cwd=project, env=variables, stdout=subprocess.PIPE, text=True, check=True
        )
        rows = list(csv.DictReader(done.stdout.splitlines()))
        predicted = {int(Path(row["file"]).stem): int(row["class"]) for row in rows}
        hits = [predicted[number] == label for number, label in enumerate(labels.tolist())]
        found[variant] = sum(hits) / len(hits)
    return found
