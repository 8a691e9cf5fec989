"""The kinds of model by their names in params.yaml.

A new kind is a module, a section of params.yaml and a line here.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stages.lib.models import networks, pca_knn, training
from stages.lib.params import ModelParams, TrainParams

# From the sections `model` and `train` of params.yaml, dataset.json, the folder of normalized
# splits, the split to validate on, and a path for the history, to the content of a model file.
Train = Callable[[ModelParams, TrainParams, Mapping[str, Any], Path, str, Path], bytes]

KINDS: dict[str, Train] = {
    "mlp": partial(training.train, networks.mlp),
    "linear": partial(training.train, networks.linear),
    "cnn": partial(training.train, networks.cnn),
    "pca_knn": pca_knn.train,
}
