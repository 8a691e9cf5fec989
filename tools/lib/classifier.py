"""A trained model, and the preprocessing that turns any image file into its input.

This module imports neither TensorFlow nor DVC.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from stages.lib.files import DAMAGED, REPAIR, read_array, read_json
from stages.lib.models.runtime import Model, read_model
from stages.lib.results.calibration import scale_temperature
from stages.lib.sources import pictures
from stages.lib.sources.catalog import dataset_files, read_dataset
from stages.lib.stage import StageError
from tools.lib import ink

MODEL = Path("data/model.onnx")
SCORES = Path("reports/scores.json")
RAW = Path("data/raw")
COMPONENTS, SAMPLE = 100, 1000  # principal components; training images that they are fitted to
FLAGGED = 0.05  # share of training images that count as unusual
BORDER = 0.9  # share of border pixels far from the background in an inverted image


@dataclass(frozen=True)
class Prepared:
    """An image file, preprocessed for the model.

    Attributes:
        image: Input of the model, in its shape, uint8.
        steps: Preprocessing steps in order; empty if the image is unchanged.
    """

    image: np.ndarray
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Subspace:
    """Principal components of the training images, and a limit of the reconstruction error.

    Attributes:
        mean: Mean training image, shape (pixels,), float32.
        components: Orthonormal rows, shape (components, pixels), float32.
        limit: Error that a share `FLAGGED` of the training images exceed.
    """

    mean: np.ndarray
    components: np.ndarray
    limit: float

    def errors(self, images: np.ndarray) -> np.ndarray:
        """Compute the share of each image's variation that the components do not explain.

        This is the squared reconstruction error (Jackson and Mudholkar 1979, Technometrics 21:341)
        relative to the squared deviation from the mean.

        Args:
            images: Shape (n, ...), uint8.

        Returns:
            Shape (n,), in [0, 1].
        """
        deviations = images.reshape(len(images), -1) - self.mean
        squares = (deviations**2).sum(axis=1)
        explained = ((deviations @ self.components.T) ** 2).sum(axis=1)
        errors: np.ndarray = 1 - explained / np.maximum(squares, 1)
        return errors


@dataclass(frozen=True)
class Classifier:
    """A model with its temperature and preprocessing.

    Attributes:
        model: The model.
        digest: SHA-256 of its file.
        temperature: Temperature of the probabilities; 1 without temperature scaling.
        centered: Whether training images are strokes centered by center of mass, as in MNIST.
    """

    model: Model
    digest: str
    temperature: float
    centered: bool = False

    def prepare(self, file: str | Path | IO[bytes]) -> Prepared:
        """Decode an image file and match it to the training images.

        Raises:
            StageError: The file is not an image, or is damaged. The message does not contain the
                file name.
        """
        try:
            with pictures.strict(), pictures.open_image(file) as (header, opened):
                if self.centered:  # reduces a JPEG while it is decoded
                    opened.draft(None, (ink.LONGEST, ink.LONGEST))
                image, steps = self._decode(opened)
        except UnidentifiedImageError as error:
            raise StageError("not a PNG, JPEG, BMP, WebP, TIFF or GIF image") from error
        except pictures.UNREADABLE as error:
            reason = getattr(error, "strerror", None) or str(error)  # without the path
            raise StageError(" ".join(reason.split()) or type(error).__name__) from error
        if self.centered and not self._is_centered(image):
            redrawn = ink.redraw(image, self.model.image, light=self.model.background < 128)
            if redrawn:
                return Prepared(redrawn[0], (*steps, *redrawn[1]))
            steps = (*steps, "strokes not isolated")
        height, width, *color = self.model.image
        if not color and self._is_inverted(image):
            image, steps = 255 - image, (*steps, "inverted")
        if (header.height, header.width) != (height, width):
            image = pictures.fit(image, height, width)
            steps = (*steps, f"fitted into {height} x {width}")
        return Prepared(image, steps)

    def _decode(self, opened: Image.Image) -> tuple[np.ndarray, tuple[str, ...]]:
        """Decode; fill transparency with the background, or with black or white for strokes."""
        gray, background = len(self.model.image) == 2, self.model.background
        image = pictures.decode(opened, gray=gray, background=None)
        if image is not None:
            return image, ()
        levels = (0, 255) if self.centered else (background,)
        drawn = [pictures.decode(opened, gray=gray, background=(level,)) for level in levels]
        best = max((image for image in drawn if image is not None), key=np.std)
        return best, ("transparent pixels filled",)

    def _is_inverted(self, image: np.ndarray) -> bool:
        """Return whether nearly all border pixels are more than 127 levels from the background.

        Not all, because training images may have bright borders, too: of the 70,000 images of
        Fashion-MNIST (background 0), two have more than 50%, and none has 80% bright border pixels.
        """
        border = pictures.border(image[None])[0].astype(int)
        return bool((np.abs(border - self.model.background) > 127).mean() >= BORDER)

    def _is_centered(self, image: np.ndarray) -> bool:
        """Return whether an image has the size of the training images and centered strokes.

        All 60,000 training images of MNIST have their center of mass within 0.52 pixels of
        (14, 14), and the longer side of their strokes has 19 or 20 pixels.
        """
        if image.shape != self.model.image:
            return False
        strokes = np.abs(image.astype(float) - self.model.background)
        if not strokes.any() or self._is_inverted(image):
            return False
        for axis, size in enumerate(image.shape):
            profile = strokes.sum(axis=1 - axis)
            used = np.flatnonzero(profile)
            mass = profile @ np.arange(size) / profile.sum()
            if abs(mass - size / 2) > 1 or used[-1] - used[0] >= ink.BOX * size + 2:
                return False
        return True

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Predict preprocessed images.

        Args:
            images: Shape (n, *image), uint8.

        Returns:
            Probabilities after temperature scaling, if any, shape (n, classes), float64.
        """
        probabilities = self.model(images)
        if self.temperature == 1:
            return probabilities.astype(np.float64)
        return scale_temperature(probabilities, self.temperature)

    def unusual(self, images: np.ndarray) -> np.ndarray | None:
        """Detect preprocessed images that are unlike the training data.

        An image is unusual if it has a single color, or if principal components explain less of it
        than of 95% of the training images; see `Subspace.errors`.

        Args:
            images: Shape (n, *image), uint8.

        Returns:
            Shape (n,), bool; None if `data/raw` does not contain the model's dataset.
        """
        subspace = self._subspace
        if subspace is None:
            return None
        flat = images.reshape(len(images), -1)
        blank = flat.min(axis=1) == flat.max(axis=1)
        unusual: np.ndarray = blank | (subspace.errors(images) > subspace.limit)
        return unusual

    @cached_property
    def _subspace(self) -> Subspace | None:
        try:
            dataset = read_json(RAW / "dataset.json")
            images = read_array(RAW / "train_images.npy")
        except FileNotFoundError:
            return None
        except DAMAGED as error:
            raise StageError(f"{RAW}: damaged: {error}; {REPAIR}") from error
        if dataset.get("name") != self.model.dataset or images.shape[1:] != self.model.image:
            return None
        rows = np.linspace(0, len(images) - 1, min(2 * SAMPLE, len(images))).astype(int)
        sample = images[rows].reshape(len(rows), -1).astype(np.float32)
        mean = sample[::2].mean(axis=0)
        deviations = sample[::2] - mean
        # The eigenvectors of the small Gram matrix yield those of the covariance matrix.
        squares, vectors = np.linalg.eigh(deviations @ deviations.T)
        kept = slice(-min(COMPONENTS, len(deviations) // 2), None)
        components = vectors.T[kept] @ deviations / np.sqrt(np.maximum(squares[kept, None], 1))
        subspace = Subspace(mean, components, 0)
        limit = np.quantile(subspace.errors(sample[1::2]), 1 - FLAGGED)
        return Subspace(mean, components, float(limit))


def read_classifier(path: Path = MODEL) -> Classifier:
    """Read a model file, the temperature of its run, and the entry of its dataset.

    Raises:
        StageError: The file is not a valid model.
    """
    model = read_model(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Classifier(model, digest, _read_temperature(path), _is_mass_centered(model))


def _read_temperature(path: Path) -> float:
    """Return the temperature of the run that trained a model; 1 for files from elsewhere."""
    if path.resolve() != MODEL.resolve() or not SCORES.exists():
        return 1.0
    scaled = read_json(SCORES).get("temperature_scaling", {"temperature": 1.0})
    temperature = scaled.get("temperature") if isinstance(scaled, dict) else None
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise StageError(f"{SCORES}: expected a temperature above 0, found {scaled}; run dvc repro")
    return float(temperature)


def _is_mass_centered(model: Model) -> bool:
    """Return whether the model's dataset is marked as mass-centered in datasets/."""
    if model.dataset not in dataset_files() or len(model.image) > 2:
        return False
    return read_dataset(model.dataset).centering == "mass"
