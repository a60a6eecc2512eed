"""Drawn flowers: reproducible at any length and size, and beyond a linear model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnlib.lab.data import CLASSES, drawn_flowers


def test_shape_types_and_classes():
    images, labels = drawn_flowers(7, size=16)
    assert images.shape == (7, 16, 16, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert CLASSES["tf_flowers"] == ("daisy", "dandelion", "roses", "sunflowers", "tulips")


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(8, 24), st.integers(0, 2**32))
def test_a_longer_draw_starts_with_the_shorter(n, more, size, seed):
    few, many = drawn_flowers(n, size, seed), drawn_flowers(n + more, size, seed)
    np.testing.assert_array_equal(few[0], many[0][:n])
    np.testing.assert_array_equal(few[1], many[1][:n])


def test_seeds_differ_and_sizes_show_the_same_flowers():
    images = drawn_flowers(5, 32)[0].astype(float)
    other = drawn_flowers(5, 32, seed=1)[0].astype(float)
    larger = drawn_flowers(5, 64)[0].reshape(5, 32, 2, 32, 2, 3).mean((2, 4))
    assert abs(images - larger).mean() < 10 < 40 < abs(images - other).mean()


def test_images_use_the_range_without_clipping_much():
    images = drawn_flowers(50, 32)[0]
    assert ((images == 0) | (images == 255)).mean() < 0.1
    assert 30 < images.mean((1, 2, 3)).min()
    assert images.std((1, 2, 3)).min() > 15


def test_a_linear_model_on_pixels_learns_little():
    from sklearn.linear_model import RidgeClassifier

    train, labels = drawn_flowers(1000, 16)
    test, expected = drawn_flowers(300, 16, seed=1)
    model = RidgeClassifier(alpha=100).fit(train.reshape(len(train), -1) / 255, labels)
    accuracy = model.score(test.reshape(len(test), -1) / 255, expected)
    assert 0.25 < accuracy < 0.55  # chance is 0.2; a small convolutional network gets 0.9


def test_mean_colour_tells_little():
    """Colours overlap: the nearest class mean of the mean colour is seldom the right one."""
    images, labels = drawn_flowers(500, 16)
    colour = images.mean((1, 2))
    centres = np.stack([colour[labels == c].mean(0) for c in range(5)])
    nearest = ((colour[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == labels).mean() < 0.4


@pytest.mark.parametrize(("n", "size"), [(-1, 64), (5, 7)])
def test_out_of_range_is_refused(n, size):
    with pytest.raises(ValueError, match=f"cannot draw {n} flowers of size {size}"):
        drawn_flowers(n, size)
