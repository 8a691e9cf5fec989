"""Read a folder of images into one array: `python -m benchmarks.baselines.images READER FOLDER`.

READER is ours, pillow (a plain loop), keras, or import (all of tools.dataset except `dvc add`). The
last line of output is JSON with the time in seconds, without imports.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory


def ours() -> Callable[[Path], object]:
    """Return a reader that runs tools.dataset up to the decoded array on disk."""
    from tools.lib.imports import Options, read

    def read_folder(folder: Path) -> object:
        with TemporaryDirectory() as scratch:
            return read(folder, Path(scratch), Options("benchmark"))

    return read_folder


def whole_import() -> Callable[[Path], object]:
    """Return a reader that runs tools.dataset without `dvc add`, in a temporary folder."""
    from tools import dataset
    from tools.lib.imports import Options

    def import_folder(folder: Path) -> object:
        with TemporaryDirectory() as scratch, chdir(scratch):
            return dataset.make(folder, Options("benchmark"), {})

    return import_folder


def pillow() -> Callable[[Path], object]:
    """Return a reader that loops over sorted files."""
    import numpy as np
    from PIL import Image

    def read_folder(folder: Path) -> object:
        images = []
        for path in sorted(folder.glob("*/*")):
            with Image.open(path) as image:
                images.append(np.asarray(image))
        return np.stack(images)

    return read_folder


def keras() -> Callable[[Path], object]:
    """Return a reader that reads all batches of image_dataset_from_directory."""
    import numpy as np
    from keras.utils import image_dataset_from_directory

    def read_folder(folder: Path) -> object:
        from PIL import Image

        with Image.open(next(folder.glob("*/*"))) as first:
            size, mode = first.size, "rgb" if first.mode == "RGB" else "grayscale"
        batches = image_dataset_from_directory(
            folder, image_size=size[::-1], color_mode=mode, shuffle=False, verbose=False
        )
        return np.concatenate([images.numpy().astype(np.uint8) for images, _ in batches])

    return read_folder


READERS = {"ours": ours, "import": whole_import, "pillow": pillow, "keras": keras}


def main() -> None:
    """Print the time of one reader."""
    reader, folder = sys.argv[1:]
    read_folder = READERS[reader]()
    start = time.perf_counter()
    read_folder(Path(folder))
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
