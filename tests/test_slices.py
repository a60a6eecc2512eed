import pytest
import torch
from torch import nn

from mnlib import pca
from mnlib.lab import data, runs, vgg
from mnlib.lab.vgg import SmallConvNet


@pytest.fixture
def network():
    torch.manual_seed(0)
    # without what follows the last pool
    network = nn.Sequential(*list(SmallConvNet(width=6))[:-3]).double().requires_grad_(False)
    for bias in vgg.parameters(network)[1]:
        bias.normal_(std=0.1)
    return network


@pytest.fixture
def images():
    return torch.randn(
        3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def test_rescaled_networks_compute_the_same_and_leave_the_original_alone(network, images):
    weights, _ = vgg.parameters(network)
    before = [w.clone() for w in weights]
    for scales in (
        pca.balanced_scales(weights),
        pca.unit_norm_scales(weights),
        vgg.normalising_scales(network, images),
    ):
        other = vgg.rescaled(network, scales)
        torch.testing.assert_close(other(images), network(images), rtol=1e-10, atol=1e-10)
        assert not torch.equal(vgg.parameters(other)[0][0], weights[0])
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_normalised_channels_have_mean_activation_one(network, images):
    network[2].bias[0] = -1e3  # a channel that never fires
    x = images
    normalised = vgg.rescaled(network, vgg.normalising_scales(network, images))
    hidden = [i for i, m in enumerate(normalised) if isinstance(m, nn.ReLU)][:-1]
    for i, layer in enumerate(normalised):
        x = layer(x)
        if i in hidden:
            mean = x.mean((0, 2, 3))
            torch.testing.assert_close(mean[mean > 0], torch.ones_like(mean[mean > 0]))


def test_all_blocks_keep_the_function_and_fewer_do_not(network, images):
    expected = network(images)
    for order in ("depthwise_first", "pointwise_first"):
        torch.testing.assert_close(vgg.decoupled(network, order, 9)(images), expected)
        assert (vgg.decoupled(network, order, 1)(images) - expected).norm() > 0.1 * expected.norm()


def test_without_data_the_subject_is_the_small_network(monkeypatch):
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    if not runs.load_runs("drawn_flowers"):
        monkeypatch.setattr(runs, "load_runs", lambda name: [])
        with pytest.raises(FileNotFoundError, match="mnlib run drawn_flowers"):
            vgg.subject()
        return
    name, network, images = vgg.subject(count=4, size=32)
    assert name == "the small network"
    assert images.shape == (4, 3, 32, 32)
    assert network(images).shape == (4, 96, 4, 4)


@pytest.mark.skipif(data.tier("vgg19") == "embedded", reason="VGG-19's weights are not there")
def test_with_data_the_subject_is_vgg19():
    name, network, images = vgg.subject(count=5, size=32)
    weights, _ = vgg.parameters(network)
    assert name == "VGG-19"
    assert len(weights) == 16
    assert sum(w.shape[1] for w in weights) == 4995
    assert sum(w.shape[0] for w in weights) == 5504
    assert network(images).shape == (5, 512, 1, 1)
