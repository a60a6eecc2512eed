"""Drawn flowers: the embedded tier's images, five classes that a linear model cannot tell apart.

Every shape is one primitive, the petal: an ellipse whose width changes linearly along its axis.
With coordinate τ in -1..1 along the axis and σ across, in half widths, it is where
f = 1 - τ² - (σ / (1 + taper·τ))² > 0. A flower is rings of petals and a disc.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mnlib.lab.data.readers import CLASSES

__all__ = ["drawn_flowers"]

_BATCH = 32  # images drawn together: few enough for the cache, enough to hide Python's loops
_NUMBERS = 144  # random numbers an image; one row each, so that a longer draw starts alike
_RINGS = 4  # at most

_COLOURS = np.array(
    [
        (0.95, 0.94, 0.90),
        (0.97, 0.82, 0.16),
        (0.93, 0.53, 0.14),
        (0.93, 0.55, 0.68),
        (0.78, 0.12, 0.16),
        (0.58, 0.28, 0.62),
        (0.26, 0.45, 0.20),
        (0.33, 0.21, 0.12),
    ],
    np.float32,
)
_WHITE, _YELLOW, _ORANGE, _PINK, _RED, _PURPLE, _GREEN, _BROWN = _COLOURS
_BACKGROUNDS = (_GREEN, _GREEN * 0.5, _BROWN, _WHITE * 0.8, (_WHITE + _PURPLE) / 3, _YELLOW * 0.7)


class _Kind(NamedTuple):
    """A way to draw a class; pairs are the ends of uniform distributions, lengths in radii."""

    rings: tuple[int, int]
    petals: tuple[int, int]
    width: tuple[float, float]  # of half a petal
    taper: tuple[float, float]  # > 0: broad tips, < 0: pointed tips
    start: float  # where petals begin, seen from the centre
    shrink: float  # of each ring with regard to the one outside it
    span: float  # the angle over which the petals are spread
    disc: tuple[float, float]  # its radius
    discs: tuple[np.ndarray, ...]
    colours: tuple[np.ndarray, ...]


_TURN = 2 * np.pi
_KINDS = {
    "daisy": 2
    * [
        _Kind(
            *((1, 1), (10, 17), (0.09, 0.15), (0.1, 0.5), 0.12, 1, _TURN, (0.18, 0.32)),
            *((_YELLOW, _ORANGE, _YELLOW * 0.8), (_WHITE, _WHITE, _PINK, _YELLOW, _PURPLE)),
        )
    ],
    "dandelion": [
        _Kind(
            *((3, 3), (15, 21), (0.05, 0.08), (0.0, 0.4), 0.0, 0.72, _TURN, (0.0, 0.12)),
            *((_YELLOW, _ORANGE), (_YELLOW, _YELLOW, _ORANGE)),
        ),
        _Kind(  # gone to seed
            *((2, 2), (20, 28), (0.025, 0.045), (0.6, 0.9), 0.1, 0.75, _TURN, (0.08, 0.16)),
            *((_BROWN, _WHITE * 0.8), (_WHITE, _WHITE * 0.85)),
        ),
    ],
    "roses": 2
    * [
        _Kind(
            *((3, 4), (5, 6), (0.34, 0.48), (0.3, 0.6), -0.1, 0.66, _TURN, (0.0, 0.0)),
            *((_RED,), (_RED, _PINK, _PINK, _WHITE, _YELLOW, _ORANGE)),
        )
    ],
    "sunflowers": 2
    * [
        _Kind(
            *((1, 2), (13, 20), (0.10, 0.16), (-0.6, -0.2), 0.2, 0.85, _TURN, (0.36, 0.56)),
            *((_BROWN, _BROWN, _BROWN * 0.6, _ORANGE * 0.7), (_YELLOW, _YELLOW, _ORANGE, _RED)),
        )
    ],
    "tulips": [
        _Kind(  # seen from the side
            *((1, 2), (3, 4), (0.32, 0.44), (-0.5, -0.2), -0.75, 0.85, 0.9, (0.0, 0.0)),
            *((_RED,), (_RED, _PINK, _YELLOW, _PURPLE, _WHITE, _ORANGE)),
        ),
        _Kind(  # seen from above
            *((2, 2), (3, 3), (0.34, 0.44), (-0.45, -0.1), 0.0, 0.85, _TURN, (0.08, 0.16)),
            *((_BROWN, _YELLOW, _GREEN), (_RED, _PINK, _YELLOW, _PURPLE, _WHITE, _ORANGE)),
        ),
    ],
}


class _Dice:
    """Hands out one column of an image-by-number table of uniform random numbers at a time."""

    def __init__(self, table: np.ndarray):
        self.columns: Iterator[np.ndarray] = iter(table.T)

    def between(self, low, high) -> np.ndarray:
        return (low + (high - low) * next(self.columns)).astype(np.float32)

    def of(self, choices) -> np.ndarray:
        """Choose a row for each image from ``choices``, one array for all or one list an image."""
        where = next(self.columns)
        if isinstance(choices, list):
            return np.stack([own[int(u * len(own))] for own, u in zip(choices, where, strict=True)])
        return np.asarray(choices)[(where * len(choices)).astype(int)]


def _cover(x, y, frame, angle, start, length, width, taper, pixel):
    """Return how much of each pixel one petal an image covers, and f there (see the module).

    ``x`` (N×1×size) and ``y`` (N×size×1) are seen from the petal's centre of rotation; ``frame``
    holds the four entries of the matrix from there to the flower's plane, in which ``angle``,
    ``start`` and the lengths are measured.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    xx, xy, yx, yy = frame
    along_x, along_y = 2 / length * (cos * xx + sin * yx), 2 / length * (cos * xy + sin * yy)
    across_x, across_y = (cos * yx - sin * xx) / width, (cos * yy - sin * xy) / width
    tau = x * _each(along_x) + (y * _each(along_y) - _each(2 * start / length + 1))
    f = x * _each(across_x) + y * _each(across_y)
    f /= np.maximum(1 + _each(taper) * tau, 0.01)
    f *= f
    f += tau * tau
    np.subtract(1, f, out=f)
    cover = f * _each(width / (2 * pixel))
    cover += 0.5
    return np.clip(cover, 0, 1, out=cover), f


def _each(values) -> np.ndarray:
    """Return one number an image, to broadcast over its pixels."""
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


def _paint(image, cover, colour, shade=1.0):
    """Blend ``colour`` times ``shade`` into ``image`` (3×N×size×size) where ``cover`` is."""
    for plane, tone in zip(image, colour.T, strict=True):
        plane += cover * (_each(tone) * shade - plane)


_UPRIGHT = (1, 0, 0, 1)


def _leaf(image, x, y, dice, colour, length, width, pixel, at=None, angle=None):
    """Paint one petal of ``colour`` an image, anywhere unless ``at`` says where."""
    cx, cy = at or (dice.between(-1.1, 1.1), dice.between(-1.1, 1.1))
    angle = dice.between(0, _TURN) if angle is None else angle
    size = 0, dice.between(*length), dice.between(*width), dice.between(-0.6, 0.6)
    cover, f = _cover(x - _each(cx), y - _each(cy), _UPRIGHT, angle, *size, pixel)
    _paint(image, cover, colour, 0.75 + 0.3 * np.maximum(f, 0))


def _background(dice, x, y, image, pixel):
    """Paint a gradient, shapes out of focus, leaves, and petals of any colour scattered about."""
    angle, one, other = dice.between(0, _TURN), dice.of(_BACKGROUNDS), dice.of(_BACKGROUNDS)
    image[:] = one.T[:, :, None, None]
    slope = x * _each(np.cos(angle)) + y * _each(np.sin(angle))
    _paint(image, np.clip(0.5 + 0.4 * slope, 0, 1), other)
    for _ in range(3):
        _leaf(image, x, y, dice, dice.of(_COLOURS) * 0.8, (0.4, 1.4), (0.2, 0.6), 0.25)
    for _ in range(3):
        green = _GREEN * dice.between(0.6, 1.4)[:, None]
        _leaf(image, x, y, dice, green, (0.5, 1.6), (0.05, 0.2), pixel)
    for _ in range(6):
        _leaf(image, x, y, dice, dice.of(_COLOURS), (0.2, 0.7), (0.04, 0.16), pixel)


def _flower(dice, kinds, x, y, image, pixel):
    """Paint stem, rings of petals from the outside in, and disc."""

    def column(field: str) -> np.ndarray:
        return np.array([getattr(kind, field) for kind in kinds])

    def ranged(field: str) -> np.ndarray:
        return dice.between(*column(field).T)

    # pose: place, size, direction, and a tilt that shortens one axis
    cx, cy, radius = dice.between(-0.35, 0.35), dice.between(-0.35, 0.35), dice.between(0.42, 0.85)
    span, start, shrink = column("span"), column("start"), column("shrink")
    side = span < _TURN
    turn = np.where(side, -np.pi / 2 + dice.between(-0.7, 0.7), dice.between(0, _TURN))
    tilt, axis = np.where(side, 1, dice.between(0.5, 1)), dice.between(0, np.pi)
    cos, sin = np.cos(axis), np.sin(axis)
    frame = np.stack([cos, sin, -sin / tilt, cos / tilt]) / radius
    down = np.where(side, turn + np.pi, dice.between(1.1, 2.0))
    green = _GREEN * dice.between(0.7, 1.3)[:, None]
    _leaf(image, x, y, dice, green, (1.5, 2.5), (0.03, 0.06), pixel, (cx, cy), down)
    x, y, pixel = x - _each(cx), y - _each(cy), pixel / (radius * np.sqrt(tilt))

    rings = np.round(ranged("rings")).astype(int)
    petals = np.round(ranged("petals")).astype(int)
    width, taper, colour = ranged("width"), ranged("taper"), dice.of([k.colours for k in kinds])
    colour = colour * np.stack([dice.between(0.8, 1.1) for _ in range(3)], 1)
    for ring in range(_RINGS):  # all of them, so that each image meets the same numbers
        scale, offset = shrink**ring, np.where(side, 0.5, dice.between(0, 1))
        jitter = np.stack([dice.between(-1, 1) for _ in range(3)])
        cover, shade = np.zeros((2, *image.shape[1:]), np.float32)
        # most petals first, so that the images that still have a k-th one are the first ones
        order = np.argsort(-petals * (ring < rings), kind="stable")
        for k in range(max(petals)):
            now = order[: np.count_nonzero((ring < rings) & (k < petals))]
            # every petal has its own direction, length and brightness
            wobble = np.sin(_TURN * (jitter[:, now] * (k + 1) * 5.3 + 0.37 * k))
            spread = (k + offset[now] + 0.15 * wobble[0]) / petals[now] - 0.5 * side[now]
            covered, f = _cover(
                *(x[now], y[now], frame[:, now]),
                turn[now] - axis[now] + span[now] * spread,
                start[now] * scale[now],
                scale[now] * (1 - start[now]) * (1 + 0.1 * wobble[1]),
                *(width[now] * scale[now], taper[now], pixel[now]),
            )
            np.maximum(f, 0, out=f)
            f *= 0.4
            f += 0.62
            f *= _each(1 + 0.12 * wobble[2])
            m = slice(len(now))
            f -= shade[m]
            f *= covered
            shade[m] += f
            cover[m] += covered * (1 - cover[m])
        back = np.argsort(order)
        _paint(image, cover[back], colour * 0.93 ** (_RINGS - 1 - ring), shade[back])

    disc, grain = ranged("disc"), _each(dice.between(18, 42))
    u, v = (x * _each(a) + y * _each(b) for a, b in (frame[:2], frame[2:]))
    inside = 1 - (u * u + v * v) / _each(np.maximum(disc, 1e-3)) ** 2
    cover = np.clip(inside * _each(disc / (2 * pixel)) + 0.5, 0, 1) * _each(disc > 0)
    speckle = 0.8 + 0.25 * np.maximum(inside, 0) + 0.12 * np.sin(grain * u) * np.sin(grain * v)
    _paint(image, cover, dice.of([k.discs for k in kinds]), speckle)


def _draw(labels: np.ndarray, table: np.ndarray, size: int) -> np.ndarray:
    """Draw one image a row of ``table``; returns float32, N×size×size×3, nominally 0..1."""
    dice, pixel = _Dice(table), 2 / size
    second = dice.between(0, 2).astype(int)
    kinds = [_KINDS[CLASSES["tf_flowers"][c]][k] for c, k in zip(labels, second, strict=True)]
    axis = ((np.arange(size) + 0.5) * pixel - 1).astype(np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    image = np.empty((3, len(labels), size, size), np.float32)
    _background(dice, x, y, image, pixel)
    _flower(dice, kinds, x, y, image, pixel)
    for _ in range(2):  # in front, hiding a part
        _leaf(image, x, y, dice, dice.of(_COLOURS) * 0.9, (0.3, 0.8), (0.03, 0.12), pixel)
    across, down = _each(dice.between(-0.25, 0.25)), _each(dice.between(-0.25, 0.25))
    image *= _each(dice.between(0.65, 1.2)) * (1 + x * across + y * down)  # light
    return np.moveaxis(image, 0, -1)


def drawn_flowers(n: int, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``n`` flowers.

    The classes have the names of tf_flowers (``CLASSES["tf_flowers"]``) and take turns. They differ
    by number and shape of the petals, disc, and pose; colours overlap; place, size, direction,
    tilt, background, scattered petals and light vary. One seed gives the same flowers at any
    size, and the first of a longer draw.

    Args:
        n: number of images.
        size: height and width in pixels, at least 8.
        seed: of NumPy's default generator.

    Returns:
        images uint8 n×size×size×3 (RGB), labels int64 n.

    Raises:
        ValueError: ``n`` or ``size`` is out of range.

    """
    if n < 0 or size < 8:
        raise ValueError(f"cannot draw {n} flowers of size {size}: give n ≥ 0 and size ≥ 8")
    shapes, grain = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    labels = np.arange(n) % len(CLASSES["tf_flowers"])
    images = np.empty((n, size, size, 3), np.uint8)
    for first in range(0, n, _BATCH):
        here = slice(first, min(first + _BATCH, n))
        table = shapes.random((here.stop - first, _NUMBERS))
        drawn = _draw(labels[here], table, size) * 255
        drawn += grain.random(drawn.shape, np.float32) * 24 - 12
        images[here] = np.clip(drawn, 0, 255)
    return images, labels
