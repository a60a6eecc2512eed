"""A network's blocks as steps: on branches that are matrices every change has a closed form."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from mnlib.lab import experiments, runs, substeps, tasks
from mnlib.lab.comparison import right
from mnlib.lab.data import Dataset
from mnlib.lab.images import prepare
from mnlib.lab.runs import Which
from mnlib.lab.tasks import Images, Training
from mnlib.lab.training import Recipe
from mnlib.mobilenet import InvertedResidual, MobileNet, Row, mobilenet_v2, mobilenet_v3_small
from mnlib.residual import ODEStage

ROW = Row(3, 8, 4, False, "RE", 1)
RECIPE = {"sizes": [2], "statistics": "imagenet", "batch": 3}
EYE = np.eye(4)


def linear(*branches: np.ndarray) -> MobileNet:
    """Return a stem, a block without shortcut, and a block a branch, which is a matrix."""
    torch.manual_seed(0)
    blocks = [InvertedResidual(4, ROW) for _ in branches]
    features = [nn.Conv2d(3, 4, 1), InvertedResidual(4, ROW._replace(stride=2)), *blocks]
    model = MobileNet(features, [nn.Linear(4, 5)])
    nn.init.normal_(model.classifier[0].weight)
    for block, branch in zip(blocks, branches, strict=True):  # else the network draws their weights
        block.block = nn.Conv2d(4, 4, 1, bias=False)
        block.block.weight.data = torch.tensor(branch, dtype=torch.float32)[:, :, None, None]
    return model.eval()


@pytest.fixture(name="images")
def _images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 2, 2, 3), dtype=np.uint8)


def answered(model: MobileNet, images: np.ndarray, change: substeps.Change) -> torch.Tensor:
    """Return the logits of the network with other blocks, all of which are run."""
    features = [change.get(k, block) for k, block in enumerate(model.features)]
    h = prepare(torch.as_tensor(images), 2, "imagenet")
    with torch.no_grad():
        for layer in features:
            h = layer(h)
        return model.classifier(h.mean((2, 3)))


def expected(model: MobileNet, images: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Return the logits where ``product`` stands in for all blocks with a shortcut."""
    with torch.no_grad():
        h = model.features[:2](prepare(torch.as_tensor(images), 2, "imagenet"))
        pooled = torch.tensor(product @ h.double().mean((2, 3)).numpy()[..., None])[..., 0]
        return model.classifier(pooled.float()).numpy()


A, B = np.random.default_rng(1).normal(size=(2, 4, 4)) / 2


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("untouched", (EYE + B) @ (EYE + A)),
        *[
            (
                f"{n} substeps",
                np.linalg.matrix_power(EYE + B / n, n) @ np.linalg.matrix_power(EYE + A / n, n),
            )
            for n in substeps.SUBSTEPS
        ],
        ("length 0.5", (EYE + B / 2) @ (EYE + A / 2)),
        ("length 1.5", (EYE + 1.5 * B) @ (EYE + 1.5 * A)),
        ("without 2", EYE + B),
        ("without 3", EYE + A),
        ("without all", EYE),
        ("2 and 3 exchanged", (EYE + A) @ (EYE + B)),
    ],
)
def test_what_is_done_to_blocks_whose_branches_are_matrices(name, product, images):
    model = linear(A, B)
    found = answered(model, images, substeps.changes(model)[name]).numpy()
    assert found == pytest.approx(expected(model, images, product), rel=1e-4, abs=1e-4)
    untouched = answered(model, images, {}).numpy()
    assert (name == "untouched") == np.allclose(found, untouched, atol=1e-3)


def test_a_change_starts_from_what_comes_before_it_and_leaves_no_trace(images):
    """A network of real blocks, each with a norm that knows statistics."""
    torch.manual_seed(0)
    blocks = [InvertedResidual(4, ROW._replace(se=i == 1)) for i in range(3)]
    features = [nn.Conv2d(3, 4, 1), InvertedResidual(4, ROW._replace(stride=2)), *blocks]
    model = MobileNet(features, [nn.Linear(4, 5)])
    nn.init.normal_(model.classifier[0].weight)
    for _ in range(20):
        model.features(torch.randn(8, 3, 4, 4))
    model.eval()
    before = copy.deepcopy(model.state_dict())
    found = substeps.study(model, images, RECIPE)
    for name, change in substeps.changes(model).items():
        if "signs" not in name:  # which are drawn a batch at a time
            assert found["answers"][name] == tasks.digits(answered(model, images, change)), name
    assert found["images"] == 8
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_substep_is_the_network_itself_to_the_last_bit():
    torch.manual_seed(0)
    for build in (mobilenet_v2, mobilenet_v3_small):
        model = build(classes=5, width=0.35).eval()
        for k, branch in substeps.branches(model).items():
            block = model.features[k]
            channels = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
            h = torch.randn(2, channels, 7, 7)
            with torch.no_grad():
                assert torch.equal(ODEStage([branch])(h), block(h))


def test_the_blocks_with_a_shortcut_and_their_neighbours():
    v2, v3 = mobilenet_v2(classes=5), mobilenet_v3_small(classes=5)
    assert list(substeps.branches(v2)) == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
    assert substeps.neighbours(v2) == [(5, 6), (8, 9), (9, 10), (12, 13), (15, 16)]
    assert list(substeps.branches(v3)) == [3, 5, 6, 8, 10, 11]
    assert substeps.neighbours(v3) == [(5, 6), (10, 11)]


def test_the_measures_of_a_branch_that_stretches_and_of_one_that_turns(images):
    turn = np.kron(EYE[:2, :2], [[0, -1], [1, 0]])
    found = substeps.study(linear(EYE / 2, turn), images, RECIPE, (2, 4))
    stretched, turned = found["blocks"]
    assert (stretched["block"], turned["block"]) == (2, 3)
    assert stretched["ratio"] == pytest.approx([0.5] * 3, abs=1e-4)
    assert stretched["angle"] == pytest.approx([0] * 3, abs=0.1)  # arccos is steep at 1
    assert stretched["1 to 2"] == pytest.approx([(1.25**2 - 1.5) / 0.5] * 3, abs=1e-4)
    assert stretched["2 to 4"] == pytest.approx([(1.125**4 - 1.25**2) / 0.5] * 3, abs=1e-4)
    assert stretched["1 to 4"] == pytest.approx([(1.125**4 - 1.5) / 0.5] * 3, abs=1e-4)
    assert turned["ratio"] == pytest.approx([1] * 3, abs=1e-4)
    assert turned["angle"] == pytest.approx([90] * 3, abs=1e-2)
    # (1 + i/2)² is 3/4 + i, and 1 + i is what it is compared with
    assert turned["1 to 2"] == pytest.approx([0.25] * 3, abs=1e-4)
    (pair,) = found["pairs"]
    assert pair["blocks"] == [2, 3]
    assert pair["angle"] == pytest.approx([90] * 3, abs=1e-2)
    assert pair["turn"] == pytest.approx([90] * 3, abs=1e-2)


def test_the_turn_of_a_pair_is_measured_along_the_path(images):
    """σ_a is h turned by 90°, and so is σ_b at h + σ_a(h): at one place none, on the way 45°."""
    turn = np.kron(EYE[:2, :2], [[0, -1], [1, 0]])
    (pair,) = substeps.study(linear(turn, turn), images, RECIPE, (2,))["pairs"]
    assert pair["angle"] == pytest.approx([0] * 3, abs=0.1)
    assert pair["turn"] == pytest.approx([45] * 3, abs=1e-2)


def test_how_far_the_logits_move_is_in_units_of_their_spread(images):
    model = linear(A, B)
    found = substeps.study(model, images, RECIPE, (2,))["logits"]["1 to 2"]
    one, two = (
        answered(model, images, substeps.changes(model)[name]).double()
        for name in ("untouched", "2 substeps")
    )
    one, two = (z - z.mean(1, keepdim=True) for z in (one, two))
    spread = (one - one.mean(0)).square().sum(1).mean().sqrt()
    distances = (one - two).norm(dim=1) / spread
    quantiles = distances.quantile(torch.tensor([0.5, 0.05, 0.95]).double())
    assert found == pytest.approx(quantiles.numpy(), abs=1e-4)


def test_signs_are_drawn_for_each_image_and_channel():
    model = linear(A, B)
    changes, h = substeps.changes(model, (2, 4, 8)), torch.randn(50, 4, 3, 3)
    assert "4 substeps, signs drawn" not in changes
    with torch.no_grad():
        change = changes["8 substeps"][2](h) - model.features[2](h)
        drawn = changes["8 substeps, signs drawn"][2](h) - model.features[2](h)
    signs = (drawn / change).mean((2, 3))
    assert drawn.abs().numpy() == pytest.approx(change.abs().numpy(), abs=1e-5)
    assert (drawn / change).std((2, 3)).max() < 1e-2
    assert 0.3 < float((signs > 0).float().mean()) < 0.7
    assert len({tuple(row) for row in (signs > 0).tolist()}) > 10


@pytest.mark.parametrize("nonlinearity", ["RE6", "HS"])
def test_two_half_steps_differ_by_half_of_what_the_branch_changes_halfway(nonlinearity):
    torch.manual_seed(0)
    branch = InvertedResidual(8, Row(3, 48, 8, nonlinearity == "HS", nonlinearity, 1)).double()
    branch, h = branch.eval().block, torch.randn(2, 8, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        sigma = branch(h)
        halfway = branch(h + sigma / 2)
        difference = ODEStage([branch], steps=2)(h) - (h + sigma)
    assert torch.allclose(difference, (halfway - sigma) / 2, atol=1e-12)
    assert difference.norm() > 1e-3


def test_an_exchange_differs_by_what_each_branch_changes_along_the_other():
    torch.manual_seed(0)
    row, h = Row(3, 48, 8, False, "RE6", 1), torch.randn(2, 8, 5, 5, dtype=torch.float64)
    a, b = (InvertedResidual(8, row).double().eval() for _ in range(2))
    with torch.no_grad():
        difference = b(a(h)) - a(b(h))
        of_b = b.block(h + a.block(h)) - b.block(h)
        of_a = a.block(h + b.block(h)) - a.block(h)
    assert torch.allclose(difference, of_b - of_a, atol=1e-12)
    assert difference.norm() > 1e-3


def test_the_network_of_the_same_names_is_studied(images, monkeypatch):
    labels = np.arange(8) % 5
    model = linear(A, B)
    recipe = Recipe(sizes=(2,), batch=3, statistics="imagenet")
    of = Training(
        Images("toy", lambda split: {"test": Dataset(images, labels)}[split]),
        partial(linear, EYE, EYE),
        recipe,
    )
    source = runs.recorded("flowers", "imagenet", "mobilenet_v2")
    asked = []
    monkeypatch.setattr(runs, "recorded", lambda *names: asked.append(names) or source)
    monkeypatch.setattr(runs, "load_checkpoint", lambda run: model.state_dict())
    monkeypatch.setitem(source.results, "recipe", RECIPE)
    found = substeps.study_recorded(of, Which("residual_flow", "mobilenet_v2", "imagenet", 3))
    assert asked == [("flowers", "imagenet", "mobilenet_v2", 3)]
    assert found.results["answers"] == substeps.study(model, images, RECIPE)["answers"]
    assert found.accuracy == right(found.results["answers"]["untouched"], labels).mean()
    assert (found.sha256, found.results["of"]) == (source.sha256, source.name)
    assert found.parameters == source.parameters


@pytest.mark.parametrize("run", runs.load_runs("residual_flow"), ids=lambda run: run.name)
def test_a_record_has_the_answers_of_the_network_that_it_is_about(run):
    source = runs.recorded("flowers", run.protocol, run.model, run.seed)
    with torch.device("meta"):
        model = experiments.task(source).network()
    assert (run.sha256, run.results["of"]) == (source.sha256, source.name)
    assert list(run.results["answers"]) == list(substeps.changes(model))
    assert {len(answers) for answers in run.results["answers"].values()} == {734}
    assert abs(run.accuracy - source.accuracy) < 0.005


@pytest.mark.parametrize("nonlinearity", ["RE6", "HS"])
def test_substeps_go_to_the_flow_of_a_branch_that_grows_at_most_linearly(nonlinearity):
    """ReLU6 as in V2; hard swish and gates as in V3."""
    torch.manual_seed(0)
    block = InvertedResidual(8, Row(3, 48, 8, nonlinearity == "HS", nonlinearity, 1)).double()
    branch, h = block.eval().block, torch.randn(2, 8, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        flow = ODEStage([branch], "rk4", steps=64)(h)
        misses = [float((ODEStage([branch], steps=n)(h) - flow).norm()) for n in (32, 64, 128)]
        growth = [float(branch(c * h).norm() / (c * h.norm())) for c in (1e4, 1e6, 1e8)]
    assert misses[0] / misses[1] == pytest.approx(2, rel=0.1)
    assert misses[1] / misses[2] == pytest.approx(2, rel=0.1)
    assert growth[2] <= 1.01 * growth[1] <= 1.1 * growth[0]
