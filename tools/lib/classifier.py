"""A trained model, and the preparation that turns any image file into its input.

Imports neither TensorFlow nor DVC: what classifies is a model file, wherever it comes from.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from stages.lib.models.runtime import Model, read_model
from stages.lib.results.calibration import scale_temperature
from stages.lib.sources import pictures
from stages.lib.stage import StageError

MODEL = Path("data/model.onnx")
SCORES = Path("reports/scores.json")


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
class Classifier:
    """A model with what its predictions on single images need.

    Attributes:
        model: The model.
        digest: SHA-256 of its file.
        temperature: Of the confidences; 1 if the run is not temperature-scaled.
    """

    model: Model
    digest: str
    temperature: float

    def prepare(self, file: str | Path | IO[bytes]) -> Prepared:
        """Decode an image file and match it to the training images.

        Raises:
            StageError: The file is not an image, or is damaged; one line without its name.
        """
        height, width, *color = self.model.image
        background = self.model.background
        try:
            with pictures.strict(), pictures.open_image(file) as (_, opened):
                image = pictures.decode(opened, gray=not color, background=(background,))
        except pictures.UNREADABLE as error:
            raise StageError(" ".join(str(error).split()) or type(error).__name__) from error
        assert image is not None  # noqa: S101  # a background is given
        return Prepared(pictures.fit(image, height, width), ())

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
        """Which prepared images are unlike the training data, shape (n,), bool; None if unknown."""
        return None


def read_classifier(path: Path = MODEL) -> Classifier:
    """Read a model file with the temperature of its run.

    Raises:
        StageError: The file is not a valid model.
    """
    temperature = 1.0
    if path == MODEL and SCORES.exists():
        scores = json.loads(SCORES.read_text(encoding="utf-8"))
        temperature = scores.get("temperature_scaling", {}).get("temperature", 1.0)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Classifier(read_model(path), digest, temperature)
