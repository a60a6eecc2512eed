"""Tools that people use on torchvision's MobileNets work on ours, which have the same layers."""

from collections import Counter

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.func import functional_call, grad, jvp, vmap
from torchvision.models.feature_extraction import create_feature_extractor

from mnlib import mobilenet

NAMES = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")


@pytest.fixture(params=NAMES)
def pair(request):
    """Return ours and torchvision's, of equal weights, evaluating."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, request.param)(num_classes=5).eval()
    ours = getattr(mobilenet, request.param)(classes=5).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_layers_are_pytorchs(pair):
    def kinds(model):
        return Counter(
            type(m)
            for m in model.modules()
            if not any(m.children()) and type(m) not in (nn.Dropout, nn.AdaptiveAvgPool2d)
        )

    ours, theirs = (kinds(model) for model in pair)
    ours[nn.ReLU] = theirs[nn.ReLU] = 0  # that of the gates is a function in ours
    assert ours == theirs


def test_they_are_traced_scripted_and_cut(pair, x):
    ours, _ = pair
    expected = ours(x)
    assert torch.equal(fx.symbolic_trace(ours)(x), expected)
    torch.testing.assert_close(torch.jit.script(ours)(x), expected)
    with torch.enable_grad():
        torch.testing.assert_close(torch.jit.trace(ours, x)(x), expected)
    cut = create_feature_extractor(ours, {"features.3": "early"})
    torch.testing.assert_close(cut(x)["early"], ours.features[:4](x))


def test_functional_transforms_give_autograds_gradients(pair, x):
    ours, _ = pair
    weights = dict(ours.named_parameters())

    def loss(weights, image):
        return functional_call(ours, weights, (image[None],)).square().sum()

    one = grad(loss)(weights, x[0])
    every = vmap(grad(loss), (None, 0))(weights, x)
    loss(weights, x[0]).backward()
    for name, p in ours.named_parameters():
        assert (one[name] - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-6
        assert (every[name][0] - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-6
    direction = torch.randn_like(x)
    _, slope = jvp(ours, (x,), (direction,))
    h = 1e-3
    ahead, behind = ours(x + h * direction), ours(x - h * direction)
    assert (slope - (ahead - behind) / (2 * h)).norm() <= 0.05 * slope.norm()


def test_a_training_step_compiles_as_a_whole():
    model = mobilenet.mobilenet_v3_small(classes=2, width=0.35).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_eager_quantisation_sees_every_convolution(x):
    model = mobilenet.mobilenet_v2(classes=5).eval()
    names = [["features.0.0", "features.0.1"]]
    fused = torch.ao.quantization.fuse_modules(model, names)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-4)
    model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    prepared = torch.ao.quantization.prepare(model)
    prepared(x)
    converted = torch.ao.quantization.convert(prepared)
    assert not [m for m in converted.modules() if type(m) is nn.Conv2d]
