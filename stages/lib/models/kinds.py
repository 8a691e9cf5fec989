"""Model kinds by their names in params.yaml.

A new kind needs a module, a section of params.yaml and an entry here.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stages.lib.models import networks, pca_knn, training
from stages.lib.params import ModelParams, TrainParams

# Arguments: the sections `model` and `train` of params.yaml, the content of dataset.json, the
# folder of normalized splits, the split to evaluate on, and the path of the history. Returns the
# content of a model file.
Train = Callable[[ModelParams, TrainParams, Mapping[str, Any], Path, str, Path], bytes]

KINDS: dict[str, Train] = {
    "mlp": partial(training.train, networks.mlp),
    "linear": partial(training.train, networks.linear),
    "cnn": partial(training.train, networks.cnn),
    "pca_knn": pca_knn.train,
}
