import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnlib import pca

few = settings(deadline=None, max_examples=15)


def chain(seed, widths=(3, 8, 6, 5, 4), dtype=torch.float64, kernel=3):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": dtype}
    weights = [torch.randn(o, i, kernel, kernel, **options) for i, o in itertools.pairwise(widths)]
    return weights, [torch.randn(o, **options) for o in widths[1:]]


def random_scales(seed, widths=(8, 6, 5)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.exp(torch.randn(n, generator=generator, dtype=torch.float64)) for n in widths]


def network(weights, biases, x):
    for weight, bias in zip(weights, biases, strict=True):
        x = torch.nn.functional.conv2d(x, weight, bias, padding=1).relu()
    return x


def penalty(weights):
    return sum(float(w.square().sum()) for w in weights)


@few
@given(st.integers(0, 10**6))
def test_rescaling_keeps_the_function_of_a_relu_network(seed):
    weights, biases = chain(seed)
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    for others in (
        pca.rescale(weights, biases, random_scales(seed)),
        pca.balance(weights, biases),
    ):
        y = network(weights, biases, x)
        assert not torch.equal(weights[1], others[0][1])
        torch.testing.assert_close(network(*others, x), y, rtol=1e-11, atol=1e-11)


@few
@given(st.integers(0, 10**6))
def test_the_balance_equations_hold_and_the_penalty_is_least(seed):
    weights, biases = chain(seed)
    balanced, _ = pca.balance(weights, biases)
    for before, after in itertools.pairwise(balanced):
        written = before.square().sum((1, 2, 3))
        read = after.square().sum((0, 2, 3))
        torch.testing.assert_close(written, read, rtol=1e-10, atol=0)
    nearby = [1 + 0.01 * (m - 1) for m in random_scales(seed)]
    assert penalty(balanced) < penalty(pca.rescale(balanced, biases, nearby)[0])


@few
@given(st.integers(0, 10**6))
def test_balance_undoes_any_rescaling_of_hidden_channels(seed):
    weights, biases = chain(seed)
    once = pca.balance(weights, biases)
    again = pca.balance(*pca.rescale(weights, biases, random_scales(seed + 1)))
    for a, b in zip(once[0] + once[1], again[0] + again[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_balance_does_not_see_the_scale_of_the_output():
    # Scaling the output's channels is another function: one factor for all of them spreads evenly
    # over the layers, so ratios within a layer stay; one a channel changes the balance.
    weights, biases = chain(0)
    louder = [*weights[:-1], 16 * weights[-1]]
    for before, after in zip(
        pca.balance(weights, biases)[0], pca.balance(louder, biases)[0], strict=True
    ):
        torch.testing.assert_close(after, 2 * before, rtol=1e-9, atol=1e-12)


def test_dtypes_are_kept_and_matrices_are_taken():
    weights, biases = chain(1, dtype=torch.float32)
    balanced = pca.balance(weights, biases)
    assert {t.dtype for t in balanced[0] + balanced[1]} == {torch.float32}
    matrices = [w.sum((2, 3)) for w in weights]
    assert [w.shape for w in pca.balance(matrices, biases)[0]] == [m.shape for m in matrices]


def test_a_channel_that_nothing_reads_or_writes_keeps_its_scale():
    weights, _ = chain(2)
    weights[0][1] = 0
    weights[2][:, 3] = 0
    scales = pca.balanced_scales(weights)
    assert scales[0][1] == 1
    assert scales[1][3] == 1
    assert all(bool(s.isfinite().all()) for s in scales)


def test_one_sentence_for_a_chain_that_does_not_fit():
    weights, biases = chain(3)
    with pytest.raises(ValueError, match="layer 1 reads 6 channels but layer 0 writes 8"):
        pca.balance([weights[0], weights[2]], biases[:2])
    with pytest.raises(ValueError, match="no weights"):
        pca.balanced_scales([])
    with pytest.raises(ValueError, match=r"give 4 and 3"):
        pca.rescale(weights, biases, random_scales(0)[:2])
    wrong = random_scales(0)
    wrong[1][2] = -1
    with pytest.raises(ValueError, match="the scales of layer 1"):
        pca.rescale(weights, biases, wrong)
