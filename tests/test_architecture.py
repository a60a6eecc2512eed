"""The outside view of the networks agrees with the papers and with the networks themselves."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mnlib import mobilenet
from mnlib.cifar import NeuralODE
from mnlib.cost import count_macs, count_parameters
from mnlib.gates import SqueezeExcitation, changed_gates
from mnlib.lab import architecture

MODELS = {
    "v1": mobilenet.mobilenet_v1,
    "v2": mobilenet.mobilenet_v2,
    "large": mobilenet.mobilenet_v3_large,
    "small": mobilenet.mobilenet_v3_small,
}


@pytest.fixture(params=MODELS)
def model(request):
    with torch.device("meta"):
        return MODELS[request.param]()


def test_layers_of_v3_large_follow_its_table():
    with torch.device("meta"):
        found = architecture.layers(mobilenet.mobilenet_v3_large())
    assert [layer.channels for layer in found[1:-1]] == [row.out for row in mobilenet.V3_LARGE]
    assert [layer.kind.endswith("SE") for layer in found[1:-1]] == [
        row.se for row in mobilenet.V3_LARGE
    ]
    assert [layer.size for layer in found] == [112] * 2 + [56] * 2 + [28] * 3 + [14] * 6 + [7] * 4
    assert sum(layer.shortcut for layer in found) == 10


def test_cost_shares_add_up_to_the_whole_network(model):
    shares = mobilenet.cost_shares(model)
    assert sum(p for p, _ in shares.values()) == pytest.approx(1)
    assert sum(m for _, m in shares.values()) == pytest.approx(1)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert shares["classifier"][0] == pytest.approx(linear / weights)
    assert shares["classifier"][1] == pytest.approx(linear / count_macs(model))


def test_cost_shares_of_v1_are_those_of_its_paper():
    """Howard et al. (2017), Table 2; its 1.19 % for the first layer is 1.91 with digits swapped."""
    with torch.device("meta"):
        shares = mobilenet.cost_shares(mobilenet.mobilenet_v1())
    percent = {kind: (100 * p, 100 * m) for kind, (p, m) in shares.items()}
    assert percent["pointwise"] == pytest.approx((74.59, 94.86), abs=0.006)
    assert percent["depthwise"] == pytest.approx((1.06, 3.06), abs=0.006)
    assert percent["classifier"] == pytest.approx((24.33, 0.18), abs=0.006)
    assert percent["convolution"] == pytest.approx((0.02, 1.91), abs=0.006)


def test_looking_leaves_the_network_as_it_was(model):
    keys = list(model.state_dict())
    architecture.layers(model)
    mobilenet.cost_shares(model)
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks for m in model.modules())


def test_the_drawing_shows_every_layer(model):
    _, ax = plt.subplots()
    architecture.draw(ax, model, "title")
    written = [text.get_text() for text in ax.texts]
    layers = architecture.layers(model)
    assert [t for t in written if "²" not in t] == [str(layer.channels) for layer in layers]
    assert [t for t in written if "²" in t] == ["112²", "56²", "28²", "14²", "7²"]
    arcs = [p for p in ax.patches if type(p).__name__ == "Arc"]
    assert len(arcs) == sum(layer.shortcut for layer in layers)
    plt.close()


def test_published_figures_name_a_source_in_the_bibliography():
    table = architecture.published()
    text = (architecture.PUBLISHED.parents[1] / "book" / "references.bib").read_text()
    assert all(f"{{{key}," in text for key in table.citation)
    assert table.top1_percent.between(60, 80).all()


def test_without_gates_a_network_differs_in_nothing_but_the_gates():
    torch.manual_seed(0)
    gated = mobilenet.mobilenet_v3_small(classes=5, width=0.35).eval()
    bare = architecture.without_gates(gated)
    weights = gated.state_dict()
    kept = bare.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in kept.items())
    assert {name.split(".")[-2] for name in weights.keys() - kept} == {"fc1", "fc2"}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), changed_gates(gated, lambda _i, s: torch.ones_like(s)):
        torch.testing.assert_close(bare(x), gated(x))
    assert any(isinstance(module, SqueezeExcitation) for module in gated.modules())


def test_the_inverted_neural_ode_is_a_flow_at_the_cost_of_the_other():
    torch.manual_seed(0)
    ode, inverted = NeuralODE().eval(), architecture.inverted_neural_ode().eval()
    assert count_parameters(inverted) == 253_114 <= count_parameters(ode) == 262_746
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    costs = []
    for model in (ode, inverted):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x[:1].float())
        costs.append(counter.get_total_flops() / 2e6)
    assert costs == pytest.approx([56.8, 56.0], abs=0.05)
    inverted.double()
    outputs = {}
    for steps in (8, 16, 64):
        inverted.solve_with("midpoint", steps=steps)
        with torch.no_grad():
            outputs[steps] = inverted(x)
    error = {n: (outputs[n] - outputs[64]).norm() for n in (8, 16)}
    # of second order, as of a smooth field
    assert error[8] / error[16] == pytest.approx(4, rel=0.15)
