"""Decoupled networks are asked for what their blocks compute, on tiny ones and drawn flowers."""

import numpy as np
import pytest
import torch
from torch import nn

from mnlib import pca
from mnlib.lab import data, decoupling, flowers, runs, tasks, vgg
from mnlib.lab.decoupling import Asked, against_blocks
from mnlib.separable import ORDERS


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    network = nn.Sequential(*list(vgg.SmallConvNet(width=6))[:-3]).requires_grad_(False)
    for bias in vgg.parameters(network)[1]:
        bias.normal_(std=0.1)
    images = torch.randn(12, 3, 16, 16)
    return network, Asked(nn.Linear(24, 5).requires_grad_(False), list(images.split(5)))


def test_only_convolutions_that_mix_channels_and_places_are_decoupled():
    small = flowers.build("mobilenet_v3_small")
    assert decoupling.regular(small) == [small.features[0][0]]
    assert len(decoupling.regular(vgg.SmallConvNet())) == 7


def test_an_answer_is_that_of_the_separable_blocks_themselves(tiny):
    network, ask = tiny
    exactly, rows = against_blocks(ask, {"as it is": network}, [1, 3])
    x = torch.cat(ask.images)
    assert exactly == tasks.digits(ask.head(network(x).mean((2, 3))))
    flat = nn.functional.normalize(network(x).flatten(1))
    for row in rows:
        blocks = vgg.decoupled(network, row["order"], row["blocks"])
        if row["first_exact"]:
            blocks[0] = network[0]
        maps = blocks(x)
        assert row["answers"] == tasks.digits(ask.head(maps.mean((2, 3))))
        cosine = (nn.functional.normalize(maps.flatten(1)) * flat).sum(1).mean()
        assert row["cosine"] == pytest.approx(cosine.item(), abs=2e-4)
    assert len(rows) == 8
    assert min(row["cosine"] for row in rows) < 0.9


def test_all_blocks_change_nothing_at_any_scale(tiny):
    network, ask = tiny
    weights, _ = vgg.parameters(network)
    balanced = vgg.rescaled(network, pca.balanced_scales(weights))
    exactly, rows = against_blocks(ask, {"as it is": network, "balanced": balanced}, [1, 9])
    assert len(rows) == 16
    for row in rows:
        if row["blocks"] == 9:
            assert (row["answers"], row["cosine"]) == (exactly, 1.0)
    one = [row for row in rows if row["blocks"] == 1]
    assert {r["cosine"] for r in one[:4]}.isdisjoint(r["cosine"] for r in one[4:])


def test_a_layer_that_reads_three_colours_is_exact_from_three_pointwise_first_blocks_on(tiny):
    network, ask = tiny
    _, rows = against_blocks(ask, {"as it is": network}, [2, 3])
    same = {}
    for order in ORDERS:
        for blocks in (2, 3):
            both = [r["cosine"] for r in rows if (r["order"], r["blocks"]) == (order, blocks)]
            same[order, blocks] = both[0] == both[1]
    assert [key for key, value in same.items() if value] == [("pointwise_first", 3)]


@pytest.mark.parametrize("model", ["vgg19", "mobilenet_v3_small"])
def test_the_measurement_asks_about_a_share_of_each_class(model, tiny, monkeypatch):
    network, _ = tiny
    images, labels = data.drawn_flowers(20, size=32)
    head = nn.Linear(24, 5).state_dict()
    mobilenet = flowers.build("mobilenet_v3_small").eval()
    kept = head if model == "vgg19" else mobilenet.state_dict()
    run = type("Run", (), {"name": "of", "parameters": 3})()
    monkeypatch.setattr(decoupling, "COUNT", 10)
    monkeypatch.setattr(decoupling, "SIDE", 16)
    monkeypatch.setattr(flowers, "load", lambda part: data.Dataset(images, labels))
    monkeypatch.setattr(runs, "recorded", lambda *names: run)
    monkeypatch.setattr(runs, "load_checkpoint", lambda run: kept)
    monkeypatch.setattr(vgg, "pretrained", lambda: network)
    monkeypatch.setattr(decoupling, "prepare", lambda x, *_: x.permute(0, 3, 1, 2) / 255)
    outcome = decoupling.measure(runs.Which("decoupling", model, "photographs", 0))
    results = outcome.results
    assert results["labels"] == "".join(map(str, labels[results["photographs"]]))
    assert np.bincount(list(map(int, results["labels"]))).tolist() == [2] * 5
    right = [a == b for a, b in zip(results["answers"], results["labels"], strict=True)]
    assert outcome.accuracy == sum(right) / 10
    assert results["precision"] == ("bfloat16" if model == "vgg19" else "float32")
    assert len(results["rows"]) == (64 if model == "vgg19" else 16)
    assert all(len(row["answers"]) == 10 for row in results["rows"])
