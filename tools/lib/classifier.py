"""A trained model, and the preparation that turns any image file into its input.

Imports neither TensorFlow nor DVC: what classifies is a model file, wherever it comes from.
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
from stages.lib.params import read_yaml
from stages.lib.results.calibration import scale_temperature
from stages.lib.sources import pictures
from stages.lib.sources.catalog import read_dataset
from stages.lib.stage import StageError
from tools.lib import ink

MODEL = Path("data/model.onnx")
SCORES = Path("reports/scores.json")
CATALOG = Path("datasets.yaml")
RAW = Path("data/raw")
COMPONENTS, SAMPLE = 100, 1000  # principal components, and the training images they are from
FLAGGED = 0.05  # share of the dataset's own images that count as unusual
BORDER = 0.9  # share of the border that has to be nearer to the opposite of the background


@dataclass(frozen=True)
class Prepared:
    """An image file as the model sees it.

    Attributes:
        image: Of the model's shape, uint8.
        steps: What was done to the image, in order; empty if it was taken as it is.
    """

    image: np.ndarray
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Subspace:
    """Principal components of the training images, and the error from which on one is unusual.

    Attributes:
        mean: Of the training images, shape (pixels,), float32.
        components: Orthonormal rows, shape (components, pixels), float32.
        limit: The error that a share `FLAGGED` of the dataset's own images exceed.
    """

    mean: np.ndarray
    components: np.ndarray
    limit: float

    def errors(self, images: np.ndarray) -> np.ndarray:
        """Share of each image's deviation from the mean that the components do not explain.

        The squared reconstruction error (Jackson and Mudholkar 1979, Technometrics 21:341), here
        relative to the squared deviation.

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
    """A model with what its predictions on single images need.

    Attributes:
        model: The model.
        digest: SHA-256 of its file.
        temperature: Of the confidences; 1 if the run is not temperature-scaled.
        centered: Whether the training images show strokes centered by mass, as those of MNIST do.
    """

    model: Model
    digest: str
    temperature: float
    centered: bool = False

    def prepare(self, file: str | Path | IO[bytes]) -> Prepared:
        """Decode an image file and match it to the training images.

        Raises:
            StageError: The file is not an image, or is damaged; one line without its name.
        """
        try:
            with pictures.strict(), pictures.open_image(file) as (header, opened):
                if self.centered:  # so a JPEG is reduced while it is decoded
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
            steps = (*steps, "more than strokes found")
        height, width, *color = self.model.image
        if not color and self._is_inverted(image):
            image, steps = 255 - image, (*steps, "inverted")
        if (header.height, header.width) != (height, width):
            image = pictures.fit(image, height, width)
            steps = (*steps, f"fitted into {height} x {width}")
        return Prepared(image, steps)

    def _decode(self, opened: Image.Image) -> tuple[np.ndarray, tuple[str, ...]]:
        """Decode; transparent pixels get the model's background, or what shows strokes best."""
        gray, background = len(self.model.image) == 2, self.model.background
        image = pictures.decode(opened, gray=gray, background=None)
        if image is not None:
            return image, ()
        levels = (0, 255) if self.centered else (background,)
        drawn = [pictures.decode(opened, gray=gray, background=(level,)) for level in levels]
        best = max((image for image in drawn if image is not None), key=np.std)
        return best, ("transparent pixels filled",)

    def _is_inverted(self, image: np.ndarray) -> bool:
        """Whether nearly all of the border is nearer to the opposite of the background.

        Single images of a dataset may have a bright border: of all 70,000 images of Fashion-MNIST,
        whose background is 0, two have more than half of it, and none 80 %.
        """
        border = pictures.border(image[None])[0].astype(int)
        return bool((np.abs(border - self.model.background) > 127).mean() >= BORDER)

    def _is_centered(self, image: np.ndarray) -> bool:
        """Whether an image looks like the published ones: of their size, strokes in the middle.

        All 60,000 training images of MNIST have their center of mass within .52 pixels of (14, 14)
        and a longer side of 19 or 20 pixels.
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
        """Predict prepared images.

        Args:
            images: Shape (n, *image), uint8.

        Returns:
            Probabilities, temperature-scaled if the run is, shape (n, classes), float64.
        """
        probabilities = self.model(images)
        if self.temperature == 1:
            return probabilities.astype(np.float64)
        return scale_temperature(probabilities, self.temperature)

    def unusual(self, images: np.ndarray) -> np.ndarray | None:
        """Which prepared images are unlike the training data.

        An image is unusual if principal components of the training images explain less of it than
        of 95 % of other training images; see `Subspace.errors`. So is an image of one color.

        Args:
            images: Shape (n, *image), uint8.

        Returns:
            Shape (n,), bool; None if `data/raw` does not hold the model's dataset.
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
        # The eigenvectors of the Gram matrix, which is small, give those of the covariance.
        squares, vectors = np.linalg.eigh(deviations @ deviations.T)
        kept = slice(-min(COMPONENTS, len(deviations) // 2), None)
        components = vectors.T[kept] @ deviations / np.sqrt(np.maximum(squares[kept, None], 1))
        subspace = Subspace(mean, components, 0)
        limit = np.quantile(subspace.errors(sample[1::2]), 1 - FLAGGED)
        return Subspace(mean, components, float(limit))


def read_classifier(path: Path = MODEL) -> Classifier:
    """Read a model file with the temperature of its run, and the entry of its dataset.

    Raises:
        StageError: The file is not a valid model.
    """
    model = read_model(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Classifier(model, digest, _read_temperature(path), _is_mass_centered(model))


def _read_temperature(path: Path) -> float:
    """The temperature of the run that trained a model: 1 for files from elsewhere."""
    if path.resolve() != MODEL.resolve() or not SCORES.exists():
        return 1.0
    scaled = read_json(SCORES).get("temperature_scaling", {"temperature": 1.0})
    temperature = scaled.get("temperature") if isinstance(scaled, dict) else None
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise StageError(f"{SCORES}: expected a temperature above 0, found {scaled}; run dvc repro")
    return float(temperature)


def _is_mass_centered(model: Model) -> bool:
    """Whether datasets.yaml has an entry of the model's dataset that says so."""
    entries = read_yaml(CATALOG) if CATALOG.exists() else None
    if not isinstance(entries, dict) or model.dataset not in entries or len(model.image) > 2:
        return False
    return read_dataset(CATALOG, model.dataset).centering == "mass"
