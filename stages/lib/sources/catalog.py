"""datasets.yaml as checked, frozen objects."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from stages.lib.params import PARAMS, Line, Section, check, read_yaml
from stages.lib.stage import StageError

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Split(Section):
    """Number of images of each published split."""

    train: int = Field(ge=1, lt=2**32)
    test: int = Field(ge=1, lt=2**32)


class Arrays(Section):
    """Something for each of the four arrays that make a dataset."""

    train_images: str
    train_labels: str
    test_images: str
    test_labels: str


class Digests(Arrays):
    """SHA-256 of each array's bytes: uint8, C order."""

    train_images: Sha256
    train_labels: Sha256
    test_images: Sha256
    test_labels: Sha256


class Source(Section):
    """One place that has the dataset: exactly one of the five ways in, and what its files are called there.

    The files are one npz with x_train, y_train, x_test and y_test, as Keras publishes datasets; or
    a CSV per split, with a header and then a row per image, its label before its pixels; or a file
    per array, IDX as MNIST's authors published it.
    """

    url: Annotated[Line, Field(pattern="^https://.+/$")] | None = None
    kaggle: Annotated[Line, Field(pattern="^[^/]+/[^/]+$")] | None = None
    npm: (
        Annotated[str, Field(pattern=r"^(@[a-z0-9-]+/)?[a-z0-9][a-z0-9._-]*@\d+\.\d+\.\d+$")] | None
    ) = None
    debian: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.+-]+$")] | None = None
    folder: Line | None = None
    files: dict[str, Line]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        ways = ("url", "kaggle", "npm", "debian", "folder")
        if sum(getattr(self, way) is not None for way in ways) != 1:
            raise ValueError(f"exactly one of {', '.join(ways)}")
        if set(self.files) not in ({"npz"}, {"train_csv", "test_csv"}, set(Arrays.model_fields)):
            raise ValueError(
                f"files: npz; or train_csv and test_csv; or {', '.join(Arrays.model_fields)}"
            )
        return self


class Dataset(Section):
    """An entry of datasets.yaml."""

    title: Line
    license: str
    classes: list[Line] = Field(min_length=2, max_length=256)
    image: Annotated[list[Annotated[int, Field(ge=1, lt=2**32)]], Field(min_length=2, max_length=2)]
    images: Split
    flip: bool = False  # whether an image mirrored left to right shows the same class
    sha256: Digests
    sources: dict[Line, Source] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes with different names")
        if "auto" in self.sources:
            raise ValueError("no source named auto, which means all of them")
        return self


def read_dataset(catalog: Path, name: str) -> Dataset:
    """Reads and checks one entry of datasets.yaml.

    Args:
        catalog: The file.
        name: The entry's key, as in `dataset` of params.yaml.

    Returns:
        The entry.

    Raises:
        StageError: No such entry; or a fault in it, as in `read_params`.
    """
    content = read_yaml(catalog)
    # A key such as 2024 is a number in YAML.
    entries = (
        {str(key): entry for key, entry in content.items()} if isinstance(content, dict) else {}
    )
    if name not in entries:
        known = ", ".join(repr(key)[1:-1] for key in entries) or "no dataset at all"
        raise StageError(
            f"{PARAMS}: dataset: expected an entry of {catalog} ({known}), found {name!r}"
        )
    return check(Dataset, entries[name], catalog, name)
