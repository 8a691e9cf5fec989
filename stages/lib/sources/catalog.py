"""Read the files in datasets/ as validated, frozen objects."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.lib.params import PARAMS, Line, Section, check, read_yaml
from stages.lib.stage import StageError

DATASETS = Path("datasets")
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, lt=2**32)]


def _shape(sizes: list[int]) -> list[int]:
    if len(sizes) != 2 and (len(sizes) != 3 or sizes[2] != 3):
        raise ValueError("[height, width] or [height, width, 3]")
    return sizes


def _distinct(classes: list[str]) -> list[str]:
    if not 2 <= len(classes) <= 256:
        raise ValueError("2 to 256 names")
    if len({*classes}) != len(classes):
        raise ValueError("different names")
    return classes


class Split(Section):
    """Number of images of each published split."""

    train: Size
    validation: Size | None = None
    test: Size


class Arrays(Section):
    """A value for each of the four arrays that every dataset has."""

    train_images: str
    train_labels: str
    test_images: str
    test_labels: str


class Digests(Arrays):
    """SHA-256 of the bytes of each published array: uint8, C order."""

    train_images: Sha256
    train_labels: Sha256
    validation_images: Sha256 | None = None
    validation_labels: Sha256 | None = None
    test_images: Sha256
    test_labels: Sha256


class Source(Section):
    """A source of a dataset: exactly one of six methods, and the names of its files.

    The files are an npz with x_train, y_train, x_test and y_test (optionally x_val and y_val), as
    published by Keras; or a CSV per split, with a header and a row per image (label, then pixels);
    or an IDX file per array, as published for MNIST. The method sklearn needs no files.
    """

    url: Annotated[Line, Field(pattern="^https://.+/$")] | None = None
    kaggle: Annotated[Line, Field(pattern="^[^/]+/[^/]+$")] | None = None
    npm: (
        Annotated[str, Field(pattern=r"^(@[a-z0-9-]+/)?[a-z0-9][a-z0-9._-]*@\d+\.\d+\.\d+$")] | None
    ) = None
    debian: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.+-]+$")] | None = None
    folder: Line | None = None
    sklearn: Literal["digits"] | None = None
    files: dict[str, Line] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        methods = ("url", "kaggle", "npm", "debian", "folder", "sklearn")
        if sum(getattr(self, method) is not None for method in methods) != 1:
            raise ValueError(f"exactly one of {', '.join(methods)}")
        if self.sklearn:
            if self.files:
                raise ValueError("no files, which sklearn does not need")
        elif set(self.files) not in ({"npz"}, {"train_csv", "test_csv"}, set(Arrays.model_fields)):
            raise ValueError(
                f"files: npz; or train_csv and test_csv; or {', '.join(Arrays.model_fields)}"
            )
        return self


class Dataset(Section):
    """The content of a file in datasets/."""

    title: Line
    license: str
    classes: Annotated[list[Line], AfterValidator(_distinct)]
    image: Annotated[list[Size], AfterValidator(_shape)]  # height, width, and 3 if in color
    images: Split
    flip: bool = False  # whether a horizontal flip preserves the class
    centering: Literal["mass"] | None = None  # published images are centered by center of mass
    sha256: Digests
    sources: dict[Line, Source] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if "auto" in self.sources:
            raise ValueError("no source named auto, which means all of them")
        digests = self.sha256.validation_images, self.sha256.validation_labels
        validation = (self.images.validation, *digests)
        if any(validation) != all(validation):
            raise ValueError("images.validation and both of its digests, or none of them")
        if self.images.validation and any(
            "npz" not in source.files for source in self.sources.values()
        ):
            raise ValueError("files: npz in every source, because images has a validation split")
        return self


def dataset_files() -> dict[str, Path]:
    """Return the files in datasets/ by the names of their datasets."""
    return {path.stem: path for path in sorted(DATASETS.glob("[!.]*.yaml"))}


def read_entry(path: Path) -> Dataset:
    """Read and validate a file in datasets/.

    Raises:
        StageError: The file is invalid.
    """
    return check(Dataset, read_yaml(path), path)


def read_dataset(name: str) -> Dataset:
    """Read and validate a dataset definition.

    Args:
        name: Name of the file in datasets/ without its suffix, as in the parameter `dataset`.

    Raises:
        StageError: The file is missing or invalid.
    """
    files = dataset_files()
    if name not in files:
        known = ", ".join(repr(each)[1:-1] for each in files) or "which is empty"
        raise StageError(
            f"{PARAMS}: dataset: expected a file in {DATASETS}/ ({known}), found {name!r}"
        )
    return read_entry(files[name])
