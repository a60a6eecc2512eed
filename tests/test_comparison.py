"""Intervals of accuracies and of differences, and calibration, against their own equations."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import xlogy

from mnlib.lab.comparison import calibration_error, paired, reliability, right, wilson


@given(st.integers(1, 800), st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_wilsons_interval_ends_where_the_observation_is_just_not_rejected(n, share):
    accuracy = round(share * n) / n
    for end in wilson(accuracy, n):
        assert -1e-9 <= end <= 1 + 1e-9
        # the score test's own equation
        z = 1.959963984540054
        assert (accuracy - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-9)


def _two(both, only_one, only_other, neither):
    one = [True] * (both + only_one) + [False] * (only_other + neither)
    other = [True] * both + [False] * only_one + [True] * only_other + [False] * neither
    return np.array(one), np.array(other)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_the_p_of_a_difference_is_mcnemars_and_either_network_may_come_first(wins, losses, both):
    one, other = _two(both, wins, losses, 1)
    found, m = paired(one, other), wins + losses
    assert found.difference == pytest.approx(one.mean() - other.mean())
    assert found.low < found.difference < found.high
    assert (found.only_one, found.only_other) == (wins, losses)
    k = min(wins, losses)
    assert found.p == pytest.approx(min(1, 2 * sum(comb(m, i) for i in range(k + 1)) / 2**m))
    back = paired(other, one)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60))
@settings(deadline=None, max_examples=40)
def test_a_difference_ends_where_the_score_test_just_does_not_reject_it(wins, losses, alike):
    found, n = paired(*_two(alike, wins, losses, 1)), wins + losses + alike + 1
    for end in (found.low, found.high):
        # the likelihood given the difference, maximised by a search
        def surprise(q, end=end):
            return -(xlogy(wins, q + end) + xlogy(losses, q) + xlogy(alike + 1, 1 - end - 2 * q))

        bounds = (max(0, -end), (1 - end) / 2)
        q = minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        variance = (2 * q + end - end**2) / n
        assert (found.difference - end) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-3)


@pytest.mark.parametrize(
    ("only_one", "only_other"), [(0.05, 0.05), (0.09, 0.06), (0.4, 0.003), (0.2, 0.0), (0.01, 0)]
)
def test_the_interval_covers_the_true_difference_as_often_as_it_says(only_one, only_other):
    rng = np.random.default_rng(0)
    chances, n, held = [only_one, only_other, 1 - only_one - only_other], 734, 0
    for wins, losses, alike in rng.multinomial(n, chances, 500):
        found = paired(*_two(alike, wins, losses, 0))
        held += found.low <= only_one - only_other <= found.high
    assert 0.93 <= held / 500 <= 0.975


def test_equal_answers_leave_room_for_what_n_images_cannot_show():
    found, z = paired(*_two(700, 0, 0, 34)), 1.959963984540054
    assert found.p == 1
    assert found.high == pytest.approx(z**2 / (734 + z**2), rel=1e-5)  # Wilson's for none of 734
    assert found.low == -found.high
    assert paired(*_two(0, 5, 0, 0)).high == 1


def test_a_difference_prints_in_points_with_a_true_minus_sign():
    assert str(paired(*_two(80, 5, 9, 6))) == "−4.0 (−12.1 to +3.7)"
    assert str(paired(*_two(9990, 1, 1, 8))) == "+0.0 (0.0 to +0.0)"


def test_answers_about_other_images_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) answers against \(4,\)"):
        paired(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(ValueError, match="3 answers to 2 images"):
        right("012", np.array([0, 1]))
    assert right("013", np.array([0, 1, 2])).tolist() == [True, True, False]


def test_calibration_bins_are_means_of_their_predictions():
    probs = np.array([[0.95, 0.05], [0.93, 0.07], [0.4, 0.6], [1.0, 0.0]])
    labels = np.array([0, 1, 1, 0])
    frame = reliability(probs, labels)
    assert frame["count"].tolist() == [1, 3]
    np.testing.assert_allclose(frame["confidence"], [0.6, (0.95 + 0.93 + 1) / 3])
    np.testing.assert_allclose(frame["accuracy"], [1, 2 / 3])
    assert calibration_error(probs, labels) == pytest.approx((0.4 + 3 * (0.96 - 2 / 3)) / 4)
