"""Strokes of a pen or chalk, found in a photo or drawing of any size and redrawn as in MNIST."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

LONGEST = 640  # pixels: larger images are reduced before strokes are searched
WINDOWS = 0.1, 0.6  # share of the image: wider than strokes of small, and of large characters
FAINTEST = 0.08  # share of the light that ink absorbs at least
DARKEST = 64  # gray level of paper, below which noise counts as much as light
SHORTEST = 0.02  # length of strokes, as a share of the image
MOST = 6  # connected components that are rated, the longest ones
NEAR, LIGHT = 0.25, 0.03  # distance and weight of further strokes, relative to the main ones
BOX = 20 / 28  # side of the box around all strokes, as a share of the image
# Least correlation of strokes with the part of the image around them: of photos, which also show
# lines and shadows, and of images that have the model's size already.
AGREEMENT, AGREEMENT_OF_SAME_SIZE = 0.45, 0.8
DETAIL = 6  # strokes are redrawn so much larger than they are in the end
WIDTHS = 0.11, 0.2  # of strokes, as a share of the longer side of their box
EIGHT = np.ones((3, 3))  # neighbors of a pixel that belong to its component

Box = tuple[slice, slice]


@dataclass(frozen=True)
class Strokes:
    """A connected component of pixels that may be what a pen has drawn.

    Attributes:
        score: How much it looks like that; 0 if not at all.
        light: Whether it is lighter than what surrounds it.
        width: Largest width of a stroke, in pixels.
        box: Its rows and columns.
        mask: Its pixels, of the image's shape, bool.
    """

    score: float
    light: bool
    width: float
    box: Box
    mask: np.ndarray


def redraw(
    image: np.ndarray, shape: tuple[int, ...], *, light: bool
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Find strokes and draw them as LeCun et al. made MNIST ("Gradient-based learning applied to
    document recognition", 1998, section III.A): fitted into 20 x 20 pixels with their aspect ratio,
    antialiased, with their center of mass in the center of 28 x 28 pixels.

    Args:
        image: Gray levels, shape (h, w), uint8.
        shape: Height and width of the result; 20/28 of the shorter side replaces 20 pixels.
        light: Whether the result is light on dark.

    Returns:
        The result, shape `shape`, uint8, with levels from 0 to 255, and the steps taken. It is of
        one level if there is nothing in the image, and None if there is much besides strokes.
    """  # noqa: D205
    gray = _reduce(image)
    found = _find(gray)
    if found is None:
        return np.full(shape, 0 if light else 255, np.uint8), ("no ink found",)
    if found.light:
        gray = 255 - gray
    ink = _absorption(gray, min(4 * found.width + 2, WINDOWS[1] * min(gray.shape)))
    threshold = max(float(np.percentile(ink[found.mask], 75)), FAINTEST) / 2
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
    steps = ["background removed", "cropped to the ink", "centered by mass"]
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
    """Share of the light absorbed by all that is darker than the paper and narrower than a window.

    The paper is the morphological closing, which follows shadows that are wider than the window.
    Beyond the border the image goes on as at the border, so a table that is visible next to the
    paper is wide, and no ink.
    """
    factor = max(1, int(window) // 48)  # wide windows need no detail
    small = np.asarray(Image.fromarray(gray).reduce(factor))
    size = max(3, round(window / factor))
    closed = ndimage.grey_closing(np.pad(small, size, mode="edge"), size)[size:-size, size:-size]
    if factor > 1:
        wide = Image.fromarray(closed).resize(gray.shape[::-1], Image.Resampling.BILINEAR)
        closed = np.asarray(wide)
    ink = (closed - gray) / np.maximum(closed, DARKEST)
    above: np.ndarray = ink - np.median(ink[::4, ::4])  # noise raises the closing everywhere
    return above


def _otsu(values: np.ndarray) -> float:
    """Threshold with the largest variance between both sides (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    levels = (edges[1:] + edges[:-1]) / 2
    below, sums = counts.cumsum()[:-1], (counts * levels).cumsum()
    above = len(values) - below
    between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(levels[between.argmax()])


def _thresholds(ink: np.ndarray) -> tuple[float, ...]:
    """Two thresholds for ink: one for faint strokes, one that lines on the paper do not reach."""
    noise = 1.4826 * np.median(np.abs(ink[::4, ::4]))  # as standard deviation
    values = ink[ink > max(4 * noise, FAINTEST)]
    if len(values) < 4:
        return ()
    high = _otsu(values) if np.ptp(values) > 0.01 else float(values.min())
    return float(np.median(values[values >= high])) / 2, high


def _length(box: Box) -> int:
    return max(int(side.stop - side.start) for side in box)


def _touches(box: Box, shape: tuple[int, ...]) -> bool:
    return any(side.start == 0 or side.stop == n for side, n in zip(box, shape, strict=True))


def _components(mask: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    labels, _ = ndimage.label(mask, EIGHT)
    return labels, ndimage.find_objects(labels)


def _find(gray: np.ndarray) -> Strokes | None:
    """Find the component with the highest score, or the one of opposite polarity around it.

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
                for i in np.argsort(-lengths, kind="stable")[:MOST].tolist():
                    if lengths[i] >= SHORTEST * max(gray.shape):
                        score, width = _rate(levels, labels[boxes[i]] == i + 1, boxes[i])
                        yield Strokes(score, light, width, boxes[i], labels == i + 1)


def _rate(gray: np.ndarray, inside: np.ndarray, box: Box) -> tuple[float, float]:
    """Score a component, and measure its width.

    Strokes are long, slender, and darker than what surrounds all of them; the hole of a 0 is not.
    What touches the border of the image is mostly something else.
    """
    margin = _length(box) // 4 + 1
    around = gray[tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)]
    rim = np.median(np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]]))
    contrast = (rim - np.median(gray[box][inside])) / max(rim, DARKEST)
    width = 2 * ndimage.distance_transform_cdt(np.pad(inside, 1)).max() - 1
    if contrast < FAINTEST:
        return 0, float(width)
    score = contrast**3 * min(_length(box) / width, 8) * _length(box) ** 0.75
    return float(score) * (0.01 if _touches(box, gray.shape) else 1), float(width)


def _select(ink: np.ndarray, mask: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Select the component that the found one is part of, and others of some weight close to it."""
    labels, boxes = _components(mask)
    numbers = range(1, len(boxes) + 1)
    weights = ndimage.sum(ink, labels, numbers)
    main = int(ndimage.sum(found, labels, numbers).argmax())
    selected = [main + 1]
    for number, box, weight in zip(numbers, boxes, weights, strict=True):
        sides = zip(box, boxes[main], strict=True)
        gap = max(max(a.start - b.stop, b.start - a.stop) for a, b in sides)
        inner = _touches(boxes[main], mask.shape) or not _touches(box, mask.shape)
        if inner and gap < NEAR * _length(boxes[main]) and weight > LIGHT * weights[main]:
            selected.append(number)
    return np.isin(labels, selected)


def _agreement(gray: np.ndarray, mask: np.ndarray) -> float:
    """Correlation of darkness and strokes in and around their box: 1 if there is nothing else."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    margin = _length(box) // 4 + 1
    around = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
    return float(np.corrcoef(255 - gray[around].ravel(), mask[around].ravel())[0, 1])


def _trace(
    ink: np.ndarray, mask: np.ndarray, threshold: float, side: int
) -> tuple[np.ndarray, float] | None:
    """Draw strokes `DETAIL` times as large as they will be, with a width as in training.

    Returns:
        Light on dark, float in [0, 1], and by how many pixels of the result strokes were widened.
        None if they are too faint and thin to remain when the image is reduced.
    """
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    factor = DETAIL * side / _length(box)
    soft = np.where(ndimage.binary_dilation(mask, EIGHT), ink, 0).clip(0, 2 * threshold)
    soft = np.pad(soft, 2)[tuple(slice(part.start, part.stop + 4) for part in box)]
    size = [max(1, round(n * factor)) for n in soft.shape[::-1]]
    large = Image.fromarray(soft).resize(size, Image.Resampling.BICUBIC)
    inside = np.pad(np.asarray(large) >= threshold, 2 * DETAIL)
    if not inside.any():
        return None
    depth = ndimage.distance_transform_edt(inside)
    width = 4 * depth[inside].mean()  # the mean depth of a bar is a quarter of its width
    least, most = (share * DETAIL * side for share in WIDTHS)
    wanted = min(max(width, least), most)
    edge = depth - ndimage.distance_transform_edt(~inside) + (wanted - width) / 2
    return (edge + 0.5).clip(0, 1), float(wanted - width) / DETAIL


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
