"""Frozen networks under one head, on drawn flowers and made-up features."""

import dataclasses

import numpy as np
import pytest
import torch

from mnlib.lab import data, experiments, flowers, frozen, runs, tasks, training, vgg
from mnlib.lab.images import prepare

WHICH = runs.Which("flowers", "mobilenet_v3_small", "frozen", 0)


def test_the_features_of_vgg_are_torchvisions(monkeypatch):
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    reference = make_layers(cfgs["E"], batch_norm=False)
    weights = {f"features.{k}": v for k, v in reference.state_dict().items()}
    monkeypatch.setattr(data, "load", lambda _: weights)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    x = images[..., ::-1] - np.array([103.939, 116.779, 123.68])
    x = torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)
    expected = reference(x).detach()[:, :, 0, 0]
    torch.testing.assert_close(frozen.vgg_features(images), expected, rtol=1e-4, atol=1e-5)


def test_the_last_block_starts_as_the_frozen_vgg_and_nothing_before_it_moves(monkeypatch):
    torch.manual_seed(0)
    network = vgg.LastBlock(5)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    features = {k: v for k, v in start.items() if k.startswith("features.")}
    monkeypatch.setattr(data, "load", lambda _: features)
    images, labels = data.drawn_flowers(5, size=64)
    expected = network.classifier(frozen.vgg_features(images))
    x = prepare(torch.tensor(images), 64, "imagenet")
    torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-3)

    recipe = dataclasses.replace(flowers.recipe(epochs=1), sizes=(64,))
    training.fit(network, images, labels, recipe)
    moved = {k for k, v in network.state_dict().items() if not v.equal(start[k])}
    block = {f"features.{i}.{part}" for i in (28, 30, 32, 34) for part in ("weight", "bias")}
    assert moved == {*block, "classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("model", ["mobilenet_v2", "mobilenet_v3_small"])
def test_the_features_of_a_mobilenet_are_what_its_last_layer_gets(model, monkeypatch):
    images, labels = data.drawn_flowers(3, size=224)
    imagenet = flowers.build(model).eval()
    monkeypatch.setattr(flowers, "load", lambda part: data.Dataset(images, labels))
    monkeypatch.setattr(tasks.data, "load", lambda _: imagenet.state_dict())
    monkeypatch.setattr(frozen.evaluations, "FOLDER", None)
    monkeypatch.setattr(frozen.fingerprint, "inputs", lambda name: {"sha256": name})
    found, parameters = frozen.features(model)
    whole = frozen.training.logits(imagenet, images, size=224, statistics="imagenet")
    last = imagenet.classifier[-1]
    torch.testing.assert_close(last(found).detach(), whole, atol=1e-4, rtol=1e-4)
    assert parameters == sum(p.numel() for p in imagenet.parameters()) - sum(
        p.numel() for p in last.parameters()
    )


def test_logistic_regression_is_scikit_learns_on_standardised_features():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, size=(80, 6)), np.arange(80) % 5
    x[:, 0] += y
    mean, std = x.mean(0), x.std(0, ddof=1) + 1e-3
    head = frozen.logistic_regression(torch.tensor(x, dtype=torch.float32), torch.tensor(y), 0.02)
    reference = LogisticRegression(C=1 / (0.02 * 80), tol=1e-8, max_iter=1000)
    reference.fit((x - mean) / std, y)
    expected = reference.decision_function((x - mean) / std)
    found = head(torch.tensor(x, dtype=torch.float32)).numpy()
    # the two differ by what is equal for all classes at most
    centred = (logits - logits.mean(1, keepdims=True) for logits in (found, expected))
    np.testing.assert_allclose(*centred, atol=1e-2)


def test_the_learning_curve_rises_and_the_kept_head_is_the_one_measured(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 40)
    known = torch.eye(5)[labels] + torch.tensor(rng.normal(0, 0.4, (200, 5))).float()
    monkeypatch.setattr(frozen, "features", lambda model: (known, 7))
    monkeypatch.setattr(flowers, "load", lambda part: data.Dataset(np.zeros((200, 1)), labels))
    monkeypatch.setattr(flowers, "HELD_OUT", 50)
    outcome = frozen.measure(WHICH, sizes=(1, 3), draws=20)
    few, more = np.reshape([row["accuracy"] for row in outcome.results["curve"]], (2, 20)).mean(1)
    assert few < more - 0.05
    assert [row["a_class"] for row in outcome.results["curve"]] == [1] * 20 + [3] * 20
    assert outcome.parameters == 7 + 5 * 5 + 5
    kept, out = frozen.training.split(labels, 50)
    assert outcome.results["trained_on"] == len(kept) == 150
    logits = known[out] @ outcome.state["weight"].T + outcome.state["bias"]
    assert tasks.digits(logits) == outcome.results["answers"]
    assert (logits.argmax(1).numpy() == labels[out]).mean() == outcome.accuracy > more


def test_each_frozen_network_has_the_same_head():
    table = experiments.EXPERIMENTS["flowers"]["frozen"]
    assert {task.measure for task in table.values()} == {frozen.measure}
    assert set(table) == {"mobilenet_v2", "mobilenet_v3_small", "vgg19"}
