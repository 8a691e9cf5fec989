"""Find strokes of a pen or chalk in a photo or drawing, and redraw them as in MNIST."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

LONGEST = 640  # pixels; larger images are reduced before the search for strokes
WINDOWS = 0.1, 0.6  # for small and large characters, wider than their strokes; shares of the image
MIN_ABSORPTION = 0.08  # share of the light that ink absorbs
DARKEST_PAPER = 64  # gray level; in darker paper, noise is as strong as ink
MIN_LENGTH = 0.02  # of strokes, as a share of the image
MAX_COMPONENTS = 6  # connected components to score, the longest ones
MAX_GAP, MIN_WEIGHT = 0.25, 0.03  # of additional strokes, relative to the main ones
BOX = 20 / 28  # side of the box around all strokes, as a share of the image
# Minimum correlation of strokes with the image around them, for photos, which also show lines and
# shadows, and for images that already have the model's size.
AGREEMENT, AGREEMENT_OF_SAME_SIZE = 0.45, 0.8
SUPERSAMPLING = 6  # factor by which strokes are redrawn larger than in the result
WIDTHS = 0.11, 0.2  # minimum and maximum of strokes, as a share of the longer side of their box
EIGHT_CONNECTED = np.ones((3, 3))

Box = tuple[slice, slice]


@dataclass(frozen=True)
class Strokes:
    """A connected component of pixels that may be pen strokes.

    Attributes:
        score: Similarity to pen strokes; 0 if there is none.
        light: Whether it is lighter than its surroundings.
        width: Largest width of a stroke, in pixels.
        box: Rows and columns of its bounding box.
        mask: Mask of its pixels, in the shape of the image, bool.
    """

    score: float
    light: bool
    width: float
    box: Box
    mask: np.ndarray


def redraw(
    image: np.ndarray, shape: tuple[int, ...], *, light: bool
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Find strokes and redraw them as in MNIST.

    Strokes are fitted into 20 x 20 pixels with their aspect ratio, antialiased, and centered by
    center of mass in 28 x 28 pixels (LeCun et al. 1998, "Gradient-based learning applied to
    document recognition", section III.A).

    Args:
        image: Gray levels, shape (h, w), uint8.
        shape: Height and width of the result; the box of 20 pixels scales with the shorter side.
        light: Whether the result is light on dark.

    Returns:
        The result, shape `shape`, uint8, with levels from 0 to 255, and the preprocessing steps.
        The result is blank if the image shows no strokes. None if it shows much besides strokes.
    """
    gray = _reduce(image)
    found = _find(gray)
    if found is None:
        return np.full(shape, 0 if light else 255, np.uint8), ("no strokes found",)
    if found.light:
        gray = 255 - gray
    ink = _absorption(gray, min(4 * found.width + 2, WINDOWS[1] * min(gray.shape)))
    threshold = max(float(np.percentile(ink[found.mask], 75)), MIN_ABSORPTION) / 2
    ink = np.maximum(ink, threshold * found.mask)
    mask = _select(ink, ink >= threshold, found.mask)
    least = AGREEMENT_OF_SAME_SIZE if image.shape == shape else AGREEMENT
    if _agreement(gray, mask) < least:
        return None
    side = round(BOX * min(shape))
    traced = _trace(ink, mask, threshold, side)
    if traced is None:
        return None
    drawn, widened = traced
    steps = ["background removed", "cropped to the strokes", "centered by mass"]
    if found.light != light:
        steps.insert(0, "inverted")
    if abs(widened) > 0.5:
        steps.insert(-1, "strokes widened" if widened > 0 else "strokes thinned")
    result = _center(drawn, shape, side)
    return result if light else 255 - result, tuple(steps)


def _reduce(image: np.ndarray) -> np.ndarray:
    factor = max(image.shape) / LONGEST
    if factor <= 1:
        return image.astype(np.float32)
    size = [max(1, round(side / factor)) for side in image.shape[::-1]]
    small = Image.fromarray(image).resize(size, Image.Resampling.BOX, reducing_gap=2)
    return np.asarray(small, np.float32)


def _absorption(gray: np.ndarray, window: float) -> np.ndarray:
    """Estimate the share of light absorbed by dark structures narrower than a window.

    The morphological closing estimates the paper, including shadows wider than the window. The
    image is padded with its border pixels, so a table next to the paper is wide, and not ink.
    """
    factor = max(1, int(window) // 48)  # wide windows need no detail
    small = np.asarray(Image.fromarray(gray).reduce(factor))
    size = max(3, round(window / factor))
    closed = ndimage.grey_closing(np.pad(small, size, mode="edge"), size)[size:-size, size:-size]
    if factor > 1:
        wide = Image.fromarray(closed).resize(gray.shape[::-1], Image.Resampling.BILINEAR)
        closed = np.asarray(wide)
    ink = (closed - gray) / np.maximum(closed, DARKEST_PAPER)
    above: np.ndarray = ink - np.median(ink[::4, ::4])  # noise raises the closing everywhere
    return above


def _otsu(values: np.ndarray) -> float:
    """Find the threshold that maximizes the between-class variance (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    levels = (edges[1:] + edges[:-1]) / 2
    below, sums = counts.cumsum()[:-1], (counts * levels).cumsum()
    above = len(values) - below
    between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(levels[between.argmax()])


def _thresholds(ink: np.ndarray) -> tuple[float, ...]:
    """Return two thresholds for ink, one that includes faint strokes and one above ruled lines."""
    noise = 1.4826 * np.median(np.abs(ink[::4, ::4]))  # robust estimate of the standard deviation
    values = ink[ink > max(4 * noise, MIN_ABSORPTION)]
    if len(values) < 4:
        return ()
    high = _otsu(values) if np.ptp(values) > 0.01 else float(values.min())
    return float(np.median(values[values >= high])) / 2, high


def _length(box: Box) -> int:
    return max(int(side.stop - side.start) for side in box)


def _touches(box: Box, shape: tuple[int, ...]) -> bool:
    return any(side.start == 0 or side.stop == n for side, n in zip(box, shape, strict=True))


def _components(mask: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    labels, _ = ndimage.label(mask, EIGHT_CONNECTED)
    return labels, ndimage.find_objects(labels)


def _find(gray: np.ndarray) -> Strokes | None:
    """Find the component with the highest score, or one of opposite polarity around it.

    The hole of a thick 0 may look like a stroke.
    """
    found = [strokes for strokes in _candidates(gray) if strokes.score > 0]
    if not found:
        return None
    best = max(found, key=lambda strokes: strokes.score)
    around = [
        strokes
        for strokes in found
        if strokes.light != best.light
        and strokes.score > best.score / 2
        and all(
            a.start <= b.start and b.stop <= a.stop
            for a, b in zip(strokes.box, best.box, strict=True)
        )
    ]
    return max(around or [best], key=lambda strokes: strokes.score)


def _candidates(gray: np.ndarray) -> Iterator[Strokes]:
    """Yield the longest components for both polarities, window sizes and thresholds."""
    for light, levels in ((False, gray), (True, 255 - gray)):
        for share in WINDOWS:
            ink = _absorption(levels, share * min(gray.shape))
            for threshold in _thresholds(ink):
                labels, boxes = _components(ink >= threshold)
                lengths = np.array([_length(box) for box in boxes])
                for i in np.argsort(-lengths, kind="stable")[:MAX_COMPONENTS].tolist():
                    if lengths[i] >= MIN_LENGTH * max(gray.shape):
                        score, width = _rate(levels, labels[boxes[i]] == i + 1, boxes[i])
                        yield Strokes(score, light, width, boxes[i], labels == i + 1)


def _rate(gray: np.ndarray, inside: np.ndarray, box: Box) -> tuple[float, float]:
    """Score a component, and measure its width.

    Strokes are long, thin, and darker than their surroundings, unlike the hole of a 0. Components
    that touch the border of the image are rarely strokes.
    """
    margin = _length(box) // 4 + 1
    around = gray[tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)]
    rim = np.median(np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]]))
    contrast = (rim - np.median(gray[box][inside])) / max(rim, DARKEST_PAPER)
    width = 2 * ndimage.distance_transform_cdt(np.pad(inside, 1)).max() - 1
    if contrast < MIN_ABSORPTION:
        return 0, float(width)
    score = contrast**3 * min(_length(box) / width, 8) * _length(box) ** 0.75
    return float(score) * (0.01 if _touches(box, gray.shape) else 1), float(width)


def _select(ink: np.ndarray, mask: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Select the component that contains the found one, and heavy components close to it."""
    labels, boxes = _components(mask)
    numbers = range(1, len(boxes) + 1)
    weights = ndimage.sum(ink, labels, numbers)
    main = int(ndimage.sum(found, labels, numbers).argmax())
    selected = [main + 1]
    for number, box, weight in zip(numbers, boxes, weights, strict=True):
        sides = zip(box, boxes[main], strict=True)
        gap = max(max(a.start - b.stop, b.start - a.stop) for a, b in sides)
        inner = _touches(boxes[main], mask.shape) or not _touches(box, mask.shape)
        near = gap < MAX_GAP * _length(boxes[main])
        if inner and near and weight > MIN_WEIGHT * weights[main]:
            selected.append(number)
    return np.isin(labels, selected)


def _agreement(gray: np.ndarray, mask: np.ndarray) -> float:
    """Correlate darkness with strokes in and around their box; 1 if only strokes are visible."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    margin = _length(box) // 4 + 1
    around = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
    return float(np.corrcoef(255 - gray[around].ravel(), mask[around].ravel())[0, 1])


def _trace(
    ink: np.ndarray, mask: np.ndarray, threshold: float, side: int
) -> tuple[np.ndarray, float] | None:
    """Draw strokes enlarged by `SUPERSAMPLING`, with widths as in the training images.

    Returns:
        Light on dark, float in [0, 1], and the change of stroke width in pixels of the result.
        None if the strokes are too faint and thin to survive scaling.
    """
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    factor = SUPERSAMPLING * side / _length(box)
    near = ndimage.binary_dilation(mask, EIGHT_CONNECTED)
    soft = np.where(near, ink, 0).clip(0, 2 * threshold)
    soft = np.pad(soft, 2)[tuple(slice(part.start, part.stop + 4) for part in box)]
    size = [max(1, round(n * factor)) for n in soft.shape[::-1]]
    large = Image.fromarray(soft).resize(size, Image.Resampling.BICUBIC)
    inside = np.pad(np.asarray(large) >= threshold, 2 * SUPERSAMPLING)
    if not inside.any():
        return None
    depth = ndimage.distance_transform_edt(inside)
    width = 4 * depth[inside].mean()  # the mean depth of a bar is a quarter of its width
    least, most = (share * SUPERSAMPLING * side for share in WIDTHS)
    wanted = min(max(width, least), most)
    edge = depth - ndimage.distance_transform_edt(~inside) + (wanted - width) / 2
    return (edge + 0.5).clip(0, 1), float(wanted - width) / SUPERSAMPLING


def _center(drawn: np.ndarray, shape: tuple[int, ...], side: int) -> np.ndarray:
    """Fit strokes into a square, and move their center of mass to the center of an image."""
    (box,) = ndimage.find_objects((drawn > 0.5).astype(np.int8))
    cropped = (255 * drawn[box]).astype(np.float32)
    size = [max(1, round(n * side / max(cropped.shape))) for n in cropped.shape[::-1]]
    small = np.asarray(Image.fromarray(cropped).resize(size, Image.Resampling.BOX))
    corner = [
        min(max(0, round(n / 2 - mass)), n - length)
        for n, mass, length in zip(shape, ndimage.center_of_mass(small), small.shape, strict=True)
    ]
    result = np.zeros(shape, np.uint8)
    place = tuple(slice(c, c + n) for c, n in zip(corner, small.shape, strict=True))
    result[place] = small.round()
    return result
