"""Files of weights: room made before HDF5 writes, and a look at what a file declares before it is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import h5py

from stages.lib.stage import StageError


def make_room(path: Path, size: int) -> None:
    """Fails as any write does where the disk has no room for a file of weights: HDF5 would crash.

    Args:
        path: Where the file will stand.
        size: Of all arrays in it, in bytes.
    """
    path.write_bytes(bytes(2 * size + 2**20))
    path.unlink()


def contents(content: IO[bytes]) -> dict[str, str]:
    """What an HDF5 file holds, by name, read from its declarations alone: no link is followed, no array read."""
    found = {}
    with h5py.File(content) as file:

        def look(name: str, link: object) -> None:
            item = file[name] if isinstance(link, h5py.HardLink) else link
            found[name] = type(item).__name__
            if isinstance(item, h5py.Dataset):
                layout = item.id.get_create_plist().get_layout()
                plain = layout == h5py.h5d.CONTIGUOUS and not item.external
                found[name] = (
                    f"{item.dtype} of shape {item.shape}{'' if plain else ', stored elsewhere or in pieces'}"
                )

        file.visititems_links(look)
    return found


def check_weights(path: Path, expected: Mapping[str, str], model: str) -> None:
    """Refuses a file that does not declare exactly the arrays of a model: no code, no link, no other size.

    Args:
        path: An HDF5 file.
        expected: As `contents` tells it of a file that is right.
        model: The kind of model, for the message.

    Raises:
        StageError: The file is damaged, or it holds anything else.
    """
    with path.open("rb") as content:
        try:
            found = contents(content)
        except (
            OSError,
            RuntimeError,
            LookupError,
            ValueError,
            TypeError,
        ) as error:  # whatever h5py makes of the bytes
            words = " ".join(str(error).split())
            raise StageError(
                f"{path}: expected a whole HDF5 file, found: {words}; dvc repro"
            ) from error
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise StageError(
                f"{path}: expected weights of model.{model} in params.yaml, {name!r} as "
                f"{expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}; dvc repro"
            )
