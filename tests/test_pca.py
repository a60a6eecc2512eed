import itertools
import warnings

import numpy as np
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


sampled = pytest.mark.parametrize("samples", ["positions", "channels"])
sliced = pytest.mark.parametrize("slices", ["vertical", "horizontal"])


def matrices(weight, slices, samples):
    """The slices as samples × features, written with loops, as the definition says."""
    n_o, n_i, k_h, k_w = weight.shape
    flat = weight.numpy().reshape(n_o, n_i, k_h * k_w)
    kernels = (
        [flat[:, i] for i in range(n_i)] if slices == "vertical" else [flat[o] for o in range(n_o)]
    )
    return [m.T if samples == "positions" else m for m in kernels]


@sliced
@sampled
@pytest.mark.parametrize("shape", [(7, 5, 3, 3), (4, 20, 3, 2), (2, 3, 1, 5), (12, 2, 1, 2)])
def test_variances_are_those_of_scikit_learn_slice_by_slice(slices, samples, shape):
    from sklearn.decomposition import PCA

    weight = 3 + torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ratios = pca.explained_variance_ratio(weight, slices=slices, samples=samples)
    variances = pca.explained_variance(weight, slices=slices, samples=samples)
    oracles = matrices(weight, slices, samples)
    assert len(ratios) == len(oracles)
    for ratio, variance, matrix in zip(ratios, variances, oracles, strict=True):
        oracle = PCA(svd_solver="full").fit(matrix)
        np.testing.assert_allclose(ratio, oracle.explained_variance_ratio_, rtol=0, atol=1e-10)
        np.testing.assert_allclose(variance, oracle.explained_variance_, rtol=0, atol=1e-10)


@sliced
@sampled
def test_uncentred_ratios_are_those_of_the_singular_values(slices, samples):
    weight = 1 + torch.randn(6, 4, 3, 3, dtype=torch.float64)
    ratios = pca.explained_variance_ratio(weight, slices=slices, samples=samples, center=False)
    for ratio, matrix in zip(ratios, matrices(weight, slices, samples), strict=True):
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        np.testing.assert_allclose(ratio, squares / squares.sum(), rtol=0, atol=1e-10)


@few
@given(st.integers(0, 10**6), st.sampled_from([1e-25, 1e-21, 1e-6, 1.0, 1e25]))
def test_ratios_see_neither_scale_nor_order_of_the_kernels(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 5, 3, 3, generator=generator)
    expected = pca.explained_variance_ratio(weight, slices="vertical")
    shuffled = factor * weight[torch.randperm(6, generator=generator)]
    torch.testing.assert_close(
        pca.explained_variance_ratio(shuffled, slices="vertical"), expected, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(expected.sum(1), torch.ones(5, dtype=torch.float64))


@sliced
@sampled
@pytest.mark.parametrize("center", [True, False])
def test_float32_is_right_to_a_millionth(slices, samples, center):
    """Slices whose mean is small, comparable and large, more of them than fit one product."""
    mean = torch.logspace(-2, 5, 32)[:, None, None, None].expand(32, 40, 3, 3).clone()
    mean = mean if slices == "horizontal" else mean.transpose(0, 1)
    weight = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3)) + mean
    how = {"slices": slices, "samples": samples, "center": center}
    exact = pca.explained_variance_ratio(weight.double(), **how)
    for matrix, expected in zip(matrices(weight.double(), slices, samples), exact, strict=True):
        squares = np.linalg.svd(matrix - center * matrix.mean(0), compute_uv=False) ** 2
        np.testing.assert_allclose(expected, squares / squares.sum(), rtol=0, atol=1e-9)
    ratios = pca.explained_variance_ratio(weight, **how)
    assert ratios.dtype == torch.float64
    torch.testing.assert_close(ratios, exact, rtol=0, atol=1e-6)


@sliced
@sampled
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_no_definition_sees_the_scale_of_float64(slices, samples, center, scale):
    weights = [torch.randn(6, 4, 3, 3, dtype=torch.float64), torch.zeros(2, 6, 3, 3).double()]
    weights[0][1], weights[0][:, 2] = 0, 0.1
    scaled = [scale * w for w in weights]
    how = {"slices": slices, "samples": samples, "center": center}
    torch.testing.assert_close(
        pca.explained_variance_ratio(scaled[0], **how),
        pca.explained_variance_ratio(weights[0], **how),
    )
    for average in pca.AVERAGES:
        expected = pca.first_component(weights, average=average, **how)
        assert pca.first_component(scaled, average=average, **how) == pytest.approx(expected)


@sampled
def test_variances_have_the_weights_scale_where_a_slice_is_taken_again(samples):
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    weight[:, 1] += 1e3
    how = {"slices": "vertical", "samples": samples}
    variances = pca.explained_variance(weight, **how)
    torch.testing.assert_close(pca.explained_variance(1e-3 * weight, **how), 1e-6 * variances)
    for matrix, variance in zip(matrices(weight, "vertical", samples), variances, strict=True):
        expected = np.linalg.svd(matrix - matrix.mean(0), compute_uv=False) ** 2
        np.testing.assert_allclose(variance, expected / (len(matrix) - 1), rtol=1e-8, atol=1e-9)


def test_small_slices_count_like_large_ones():
    weights = [torch.randn(6, 4, 3, 3), 1e-4 * torch.randn(5, 6, 3, 3)]
    shares = [pca.explained_variance_ratio(w, slices="vertical")[:, 0] for w in weights]
    mean = float(torch.cat(shares).mean())
    assert pca.first_component(weights, slices="vertical") == pytest.approx(mean, abs=1e-6)


@sampled
def test_ratios_are_right_where_the_mean_dominates(samples):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 6, 3, 3, generator=generator, dtype=torch.float64)
    options = {"slices": "vertical", "samples": samples}
    expected = pca.explained_variance_ratio(weight, **options)
    shifted = pca.explained_variance_ratio(weight + 1e4, **options)
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-10)
    far = pca.explained_variance_ratio(weight + 1e9, **options)  # the weights keep seven digits
    torch.testing.assert_close(far, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@sliced
@sampled
def test_slices_without_variance_get_zeros_and_do_not_count(dtype, slices, samples):
    def ratios(weight):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return pca.explained_variance_ratio(weight.to(dtype), slices=slices, samples=samples)

    constant = torch.full((5, 4, 3, 3), 0.1)
    assert not ratios(constant).any()
    assert not ratios(torch.zeros(5, 4, 3, 3)).any()
    one_sample = (5, 4, 1, 1) if samples == "positions" else (1, 1, 3, 3)
    assert not ratios(torch.randn(one_sample)).any()
    mixed = torch.stack([constant, torch.randn(5, 4, 3, 3)]).flatten(0, 1)
    options = {"slices": "horizontal", "samples": samples}
    for average in ("mean", "median", "pooled"):
        with_constant = pca.first_component([mixed.to(dtype)], average=average, **options)
        without = pca.first_component([mixed[5:].to(dtype)], average=average, **options)
        assert with_constant == pytest.approx(without, abs=1e-6)
        assert pca.first_component([constant.to(dtype)], average=average, **options) == 0


def test_one_sample_less_than_the_rank_leaves_shape_and_sum():
    ratios = pca.explained_variance_ratio(torch.randn(8, 1, 3, 3), slices="horizontal")
    assert ratios.tolist() == [[1.0]] * 8
    ratios = pca.explained_variance_ratio(torch.randn(20, 8, 3, 3), slices="vertical")
    assert ratios.shape == (8, 9)
    assert not ratios[:, 8].any()  # nine centred samples span eight dimensions


def test_pooling_counts_sums_of_squares_whatever_the_number_of_samples():
    few, many = torch.randn(5, 2, 3, 3), torch.randn(5, 40, 3, 3)
    options = {"slices": "horizontal", "samples": "channels", "center": False}
    parts = [pca.first_component([w], average="pooled", **options) for w in (few, many)]
    sizes = [float(w.square().sum()) for w in (few, many)]
    pooled = pca.first_component([few, many], average="pooled", **options)
    assert pooled == pytest.approx(np.average(parts, weights=sizes), abs=1e-6)


def test_averages_are_what_their_names_say():
    weights = [torch.randn(6, 4, 3, 3), 5 * torch.randn(3, 6, 3, 3)]
    kinds = {"slices": "horizontal"}
    first = torch.cat([pca.explained_variance_ratio(w, **kinds)[:, 0] for w in weights])
    squares = []
    for matrix in [m for w in weights for m in matrices(w, "horizontal", "positions")]:
        squares.append(np.linalg.svd(matrix - matrix.mean(0), compute_uv=False) ** 2)
    pooled = sum(s[0] for s in squares) / sum(s.sum() for s in squares)
    for average, expected in (("mean", first.mean()), ("pooled", pooled)):
        assert pca.first_component(weights, average=average, **kinds) == pytest.approx(
            float(expected), abs=1e-6
        )
    median = pca.first_component(weights, average="median", **kinds)
    assert median == pytest.approx(np.median(first.numpy()))


def test_one_sentence_for_bad_input():
    weight = torch.randn(3, 2, 3, 3)
    with pytest.raises(ValueError, match="'vertical' or 'horizontal'"):
        pca.explained_variance(weight, slices="diagonal")
    with pytest.raises(ValueError, match="'positions' or 'channels'"):
        pca.explained_variance(weight, slices="vertical", samples="pixels")
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        pca.explained_variance(weight[..., 0, 0], slices="vertical")
    with pytest.raises(ValueError, match="'mean', 'median' or 'pooled'"):
        pca.first_component([weight], slices="vertical", average="mode")
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(ValueError, match=f"{dtype}.* give floating numbers"):
            pca.explained_variance(weight.to(dtype), slices="vertical")
    for value in (torch.nan, torch.inf, -torch.inf):
        weight[1, 1, 1, 1] = value
        for dtype in (torch.float32, torch.float64):
            with pytest.raises(ValueError, match="NaN"):
                pca.explained_variance(weight.to(dtype), slices="vertical")


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
    matrices = [w.double().sum((2, 3)) for w in weights]
    balanced, _ = pca.balance(matrices, biases)
    assert [w.shape for w in balanced] == [m.shape for m in matrices]
    for before, after in itertools.pairwise(balanced):
        torch.testing.assert_close(before.square().sum(1), after.square().sum(0))
    for made in (pca.balanced_scales, pca.unit_norm_scales):
        for scale, same in zip(
            made(matrices), made([m[..., None, None] for m in matrices]), strict=True
        ):
            torch.testing.assert_close(scale, same)


def test_scales_are_made_where_the_weights_are():
    """A stand-in for a second device: what is made without naming one would be on it."""
    weights, biases = chain(1)
    with torch.device("meta"):
        pca.rescale(weights, biases, pca.unit_norm_scales(weights))
        pca.balance(weights, biases)
        pca.explained_variance(weights[0], slices="vertical")


@pytest.mark.parametrize("scale", [1e-170, 1e160])
def test_balance_sees_no_scale_that_all_layers_share(scale):
    weights, _ = chain(6)
    for once, again in zip(
        pca.balanced_scales(weights),
        pca.balanced_scales([scale * w for w in weights]),
        strict=True,
    ):
        torch.testing.assert_close(again, once)
    first = pca.unit_norm_scales([scale * w for w in weights])[0]
    torch.testing.assert_close(scale * first, pca.unit_norm_scales(weights)[0])


def test_a_channel_that_nothing_reads_or_writes_keeps_its_scale():
    weights, _ = chain(2)
    weights[0][1] = 0
    weights[2][:, 3] = 0
    scales = pca.balanced_scales(weights)
    assert scales[0][1] == 1
    assert scales[1][3] == 1
    assert all(bool(s.isfinite().all()) for s in scales)


def test_unit_norm_scales_give_every_hidden_filter_norm_one():
    weights, biases = chain(4)
    weights[1][2] = 0
    scaled, _ = pca.rescale(weights, biases, pca.unit_norm_scales(weights))
    norms = torch.cat([w.square().sum((1, 2, 3)).sqrt() for w in scaled[:-1]])
    assert norms[8 + 2] == 0
    torch.testing.assert_close(norms[norms > 0], torch.ones(18, dtype=torch.float64))


def test_vertical_slices_see_only_the_scale_of_outputs_and_horizontal_ones_that_of_inputs():
    weights, biases = chain(5)
    scales = [torch.ones(8), random_scales(5)[1], torch.ones(5)]
    rescaled, _ = pca.rescale(weights, biases, scales)  # of what layer 1 writes and layer 2 reads

    def ratios(weight, slices):
        return pca.explained_variance_ratio(weight, slices=slices)

    torch.testing.assert_close(ratios(rescaled[1], "horizontal"), ratios(weights[1], "horizontal"))
    torch.testing.assert_close(ratios(rescaled[2], "vertical"), ratios(weights[2], "vertical"))
    assert (ratios(rescaled[1], "vertical") - ratios(weights[1], "vertical")).abs().max() > 0.01
    assert (ratios(rescaled[2], "horizontal") - ratios(weights[2], "horizontal")).abs().max() > 0.01


def test_one_sentence_for_a_chain_that_does_not_fit():
    weights, biases = chain(3)
    with pytest.raises(ValueError, match="layer 1 reads 6 channels but layer 0 writes 8"):
        pca.balance([weights[0], weights[2]], biases[:2])
    for value in (torch.nan, torch.inf):
        spoiled = [w.clone() for w in weights]
        spoiled[2][0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="a NaN or an infinity"):
            pca.balance(spoiled, biases)
        with pytest.raises(ValueError, match="a NaN or an infinity"):
            pca.unit_norm_scales(spoiled)
    with pytest.raises(ValueError, match=r"torch\.int64.* give floating numbers"):
        pca.balance([w.long() for w in weights], biases)
    with pytest.raises(ValueError, match=r"torch\.int64.* give floating numbers"):
        pca.balance(weights, [b.long() for b in biases])
    with pytest.raises(ValueError, match="no weights"):
        pca.balanced_scales([])
    with pytest.raises(ValueError, match=r"give 4 and 3"):
        pca.rescale(weights, biases, random_scales(0)[:2])
    wrong = random_scales(0)
    wrong[1][2] = -1
    with pytest.raises(ValueError, match="the scales of layer 1"):
        pca.rescale(weights, biases, wrong)


def test_the_atlas_has_every_definition():
    torch.manual_seed(0)
    weights = [torch.randn(4, 3, 3, 3), torch.randn(5, 4, 3, 3)]
    rows = pca.atlas(weights, slices="horizontal")
    assert [(row["samples"], row["center"]) for row in rows] == [
        ("positions", True),
        ("positions", False),
        ("channels", True),
        ("channels", False),
    ]
    how = {"slices": "horizontal", "samples": "channels", "center": True, "average": "pooled"}
    assert rows[2]["pooled"] == 100 * pca.first_component(weights, **how)
    assert rows[0]["mean"] == 100 * pca.first_component(weights, slices="horizontal")
