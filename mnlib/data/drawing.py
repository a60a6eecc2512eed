"""Drawn flowers: the embedded tier's images, five classes that a linear model cannot tell apart.

Every shape is one primitive, the petal: an ellipse whose width changes linearly along its axis.
With coordinate τ in -1..1 along the axis and σ across, in half widths, it is where
f = 1 - τ² - (σ / (1 + taper·τ))² > 0. A flower is rings of petals and a disc.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mnlib.data.readers import CLASSES

_BATCH = 32  # images drawn together: few enough for the cache, enough to hide Python's loops
_NUMBERS = 512  # random numbers an image; one stream of rows, so that a longer draw starts alike

_WHITE, _YELLOW, _ORANGE, _PINK, _RED, _PURPLE, _GREEN, _BROWN = np.array(
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


def _cover(x, y, angle, start, length, width, taper, pixel):
    """Return how much of each pixel one petal an image covers, and f there (see the module)."""
    cos, sin, start, length, width, taper = (
        np.asarray(v, np.float32)[:, None, None]
        for v in (np.cos(angle), np.sin(angle), start, length, width, taper)
    )
    tau = x * (2 / length * cos)
    tau += y * (2 / length * sin)
    tau -= 2 * start / length + 1
    across = y * (cos / width)
    across -= x * (sin / width)
    across /= 1 + taper * tau
    f = 1 - tau * tau
    f -= across * across
    cover = f * (width / (2 * np.asarray(pixel, np.float32).reshape(-1, 1, 1)))
    cover += 0.5
    return np.clip(cover, 0, 1, out=cover), f


def _paint(image, cover, colour, shade=1.0):
    """Blend ``colour`` times ``shade`` into ``image`` (3×N×size×size) where ``cover`` is."""
    for plane, tone in zip(image, colour.T[:, :, None, None], strict=True):
        plane += cover * (tone * shade - plane)


def _leaf(image, x, y, dice, colour, length, width, pixel, at=None, angle=None):
    """Paint one petal of ``colour`` an image, anywhere unless ``at`` says where."""
    n = len(colour)
    cx, cy = at if at is not None else (dice.between(-1.1, 1.1), dice.between(-1.1, 1.1))
    angle = dice.between(0, _TURN) if angle is None else angle
    length, width = dice.between(*length), dice.between(*width)
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    cover, f = _cover(dx, dy, angle, np.zeros(n), length, width, dice.between(-0.6, 0.6), pixel)
    _paint(image, cover, colour, 0.75 + 0.3 * np.maximum(f, 0))


def _draw(labels: np.ndarray, table: np.ndarray, size: int) -> np.ndarray:
    """Draw one image a row of ``table``; returns float32, N×size×size×3, nominally 0..1."""
    n, dice, pixel = len(labels), _Dice(table), 2 / size
    names = CLASSES["tf_flowers"]
    kinds = [
        _KINDS[names[label]][int(u * 2)]
        for label, u in zip(labels, next(dice.columns), strict=True)
    ]

    def column(field: str) -> np.ndarray:
        return np.array([getattr(kind, field) for kind in kinds], np.float32)

    def ranged(field: str) -> np.ndarray:
        return dice.between(*column(field).T)

    axis = ((np.arange(size) + 0.5) * pixel - 1).astype(np.float32)
    x, y = np.broadcast_arrays(axis[None, None, :], axis[None, :, None])
    every_colour = np.stack([_WHITE, _YELLOW, _ORANGE, _PINK, _RED, _PURPLE, _GREEN, _BROWN])

    # background: a gradient, shapes out of focus, leaves, scattered petals of any flower's colour
    image = np.empty((3, n, size, size), np.float32)
    angle, one, other = dice.between(0, _TURN), dice.of(_BACKGROUNDS), dice.of(_BACKGROUNDS)
    slope = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
    image[:] = one.T[:, :, None, None]
    _paint(image, np.clip(0.5 + 0.4 * slope, 0, 1), other)
    for _ in range(3):
        _leaf(image, x, y, dice, dice.of(every_colour) * 0.8, (0.4, 1.4), (0.2, 0.6), 0.25)
    for _ in range(3):
        _leaf(
            image,
            x,
            y,
            dice,
            _GREEN * dice.between(0.6, 1.4)[:, None],
            (0.5, 1.6),
            (0.05, 0.2),
            pixel,
        )
    for _ in range(6):
        _leaf(image, x, y, dice, dice.of(every_colour), (0.2, 0.7), (0.04, 0.16), pixel)

    # pose: place, size, direction, and a tilt that shortens one axis
    cx, cy, radius = dice.between(-0.35, 0.35), dice.between(-0.35, 0.35), dice.between(0.42, 0.85)
    side = column("span") < _TURN
    turn = np.where(side, -np.pi / 2 + dice.between(-0.7, 0.7), dice.between(0, _TURN))
    tilt, tilted = np.where(side, 1, dice.between(0.5, 1)), dice.between(0, np.pi)
    down = np.where(side, turn + np.pi, dice.between(1.1, 2.0))
    _leaf(
        image,
        x,
        y,
        dice,
        _GREEN * dice.between(0.7, 1.3)[:, None],
        (1.5, 2.5),
        (0.03, 0.06),
        pixel,
        (cx, cy),
        down,
    )
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    cos, sin = (v.astype(np.float32)[:, None, None] for v in (np.cos(tilted), np.sin(tilted)))
    u = (dx * cos + dy * sin) / radius[:, None, None]
    v = (dy * cos - dx * sin) / (radius * tilt).astype(np.float32)[:, None, None]
    pixel_here = pixel / (radius * np.sqrt(tilt))

    # rings of petals from the outside in, each petal with its own length, direction and brightness
    rings = np.round(ranged("rings")).astype(int)
    petals = np.round(ranged("petals")).astype(int)
    width, taper, colour = ranged("width"), ranged("taper"), dice.of([k.colours for k in kinds])
    colour = colour * np.stack([dice.between(0.8, 1.1) for _ in range(3)], 1)
    start, span, shrink = column("start"), column("span"), column("shrink")
    for ring in range(max(rings)):
        scale, offset = shrink**ring, dice.between(0, 1)
        cover, shade = np.zeros((2, n, size, size), np.float32)
        jitter = [dice.between(-1, 1) for _ in range(3)]
        for k in range(max(petals)):
            has = np.flatnonzero((ring < rings) & (k < petals))
            if not len(has):
                continue
            # cheap, reproducible jitter: three numbers an image, spread over its petals
            wobble = [np.sin(_TURN * (j[has] * (k + 1) * 5.3 + 0.37 * k)) for j in jitter]
            direction = turn[has] + span[has] * (
                (k + np.where(side[has], 0.5, offset[has]) + 0.15 * wobble[0]) / petals[has]
                - np.where(side[has], 0.5, 0)
            )
            length = scale[has] * (1 - start[has]) * (1 + 0.10 * wobble[1])
            covered, f = _cover(
                u[has],
                v[has],
                direction - tilted[has],
                start[has],
                length,
                width[has] * scale[has],
                taper[has],
                pixel_here[has],
            )
            tone = (1 + 0.12 * wobble[2]).astype(np.float32)[:, None, None]
            f = tone * (0.62 + 0.4 * np.maximum(f, 0)) - shade[has]
            shade[has] += covered * f
            cover[has] += covered * (1 - cover[has])
        _paint(image, cover, colour * 0.93 ** (max(rings) - ring - 1), shade)

    disc, grain = ranged("disc"), dice.between(6, 14)[:, None, None]
    distance = 1 - (u * u + v * v) / np.maximum(disc, 1e-3)[:, None, None] ** 2
    edge = (
        np.clip(distance * (disc / (2 * pixel_here))[:, None, None] + 0.5, 0, 1)
        * (disc > 0.02)[:, None, None]
    )
    speckle = (
        0.8 + 0.25 * np.maximum(distance, 0) + 0.12 * np.sin(grain * 3 * u) * np.sin(grain * 3 * v)
    )
    _paint(
        image,
        edge.astype(np.float32),
        dice.of([k.discs for k in kinds]),
        speckle.astype(np.float32),
    )

    # in front: leaves that hide a part; then the light
    for _ in range(2):
        _leaf(image, x, y, dice, dice.of(every_colour) * 0.9, (0.3, 0.8), (0.03, 0.12), pixel)
    light = dice.between(0.65, 1.2)[:, None, None] * (
        1
        + x * dice.between(-0.25, 0.25)[:, None, None]
        + y * dice.between(-0.25, 0.25)[:, None, None]
    )
    return np.moveaxis(image * light, 0, -1)


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
