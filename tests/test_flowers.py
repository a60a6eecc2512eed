"""The flowers experiment: split, weights, records and measures, on drawn flowers."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mnlib.lab import data, experiments, fingerprint, flowers, runs, training

CLASSES = data.CLASSES["tf_flowers"]
PROVENANCE = {
    "dataset": "tf_flowers",
    **{"seed": 0, "epochs": 1, "parameters": 1, "hardware": "", "seconds": 1.0},
    **{"commit": "", "date": "", "command": "", "versions": {}, "inputs": {}, "code": ""},
}


RECIPE = dataclasses.asdict(flowers.recipe(1))


def test_the_published_split_is_the_one_that_is_trained_on():
    rows = flowers.published_split()
    assert len(rows) == 3670
    assert rows["class"].value_counts()[list(CLASSES)].tolist() == [633, 898, 641, 699, 799]
    assert not rows[["class", "file"]].duplicated().any()
    assert rows.sort_values(["class", "file"]).index.tolist() == list(range(3670))
    kept, out = training.split(rows["label"].to_numpy(), flowers.HELD_OUT)
    assert np.flatnonzero(rows["part"] == "validation").tolist() == out.tolist()
    assert np.flatnonzero(rows["part"] == "train").tolist() == kept.tolist()
    share = (rows["part"] == "validation").groupby(rows["class"]).mean()
    np.testing.assert_allclose(share, 0.2, atol=0.002)


def test_the_hashes_of_the_split_show_two_photographs_that_are_there_twice():
    hashes = [h for h in flowers.published_split()["sha256"] if h]
    assert len(hashes) == 2271
    assert len({*hashes}) == len(hashes) - 2  # byte for byte, under two names
    assert all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)


@pytest.fixture(scope="module")
def drawn():
    return data.drawn_flowers(20, size=224)


@pytest.fixture
def photographs(monkeypatch, drawn):
    """Twenty drawn flowers in the place of the photographs, and a split of them."""
    images, labels = drawn
    order = np.argsort(labels, kind="stable")
    images, labels = images[order], labels[order]
    files = tuple(f"{CLASSES[label]}/{i:02d}.jpg" for i, label in enumerate(labels))
    rows = flowers.published_split().iloc[:0]
    for i, (file, label) in enumerate(zip(files, labels, strict=True)):
        part = "validation" if i % 4 == 0 else "train"
        rows.loc[i] = [*file.split("/"), "", part, label]
    monkeypatch.setattr(data, "packed_flowers", lambda size: (images, labels, files))
    monkeypatch.setattr(flowers, "published_split", lambda: rows)
    monkeypatch.setattr(flowers, "HELD_OUT", 5)
    return images, labels


def test_the_validation_photographs_are_those_of_the_split(photographs):
    images, labels = photographs
    assert np.array_equal(flowers.load("train").images, images)
    held_out = flowers.load("test")
    assert np.array_equal(held_out.images, images[::4])
    assert np.array_equal(held_out.labels, labels[::4])


def test_other_photographs_than_the_published_are_refused(photographs, monkeypatch):
    images, labels, files = data.packed_flowers(224)
    other = (*files[:-1], "tulips/strange.jpg")
    monkeypatch.setattr(data, "packed_flowers", lambda size: (images, labels, other))
    with pytest.raises(ValueError, match=r"flowers_split.csv \(2 differ.*mnlib fetch tf_flowers"):
        flowers.load("test")


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_imagenet_weights_reach_all_layers_but_the_last(name, monkeypatch):
    from mnlib import mobilenet

    torch.manual_seed(1)
    imagenet = getattr(mobilenet, name)(1000)
    monkeypatch.setattr(data, "load", lambda _: imagenet.state_dict())
    model = experiments.IMAGENET_TRAININGS[name].build()
    *_, weight, bias = model.state_dict()
    for key, value in model.state_dict().items():
        if key in (weight, bias):
            assert len(value) == 5
        else:
            assert torch.equal(value, imagenet.state_dict()[key]), key


def test_a_recorded_network_gives_its_recorded_probabilities(photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    task = dataclasses.replace(
        experiments.EXPERIMENTS["flowers"]["scratch"]["mobilenet_v3_small"],
        recipe=dataclasses.replace(flowers.recipe(1), sizes=(32,), batch=5),
        held_out=5,
    )
    monkeypatch.setitem(experiments.EXPERIMENTS["flowers"]["scratch"], "mobilenet_v3_small", task)
    monkeypatch.setattr(fingerprint, "inputs", lambda name: {"source": "drawn", "sha256": "0"})
    names = {"protocol": "scratch", "models": ["mobilenet_v3_small"]}
    (run,) = experiments.run("flowers", **names, folder=tmp_path)
    monkeypatch.setattr(runs, "load_checkpoint", partial(runs.load_checkpoint, folder=tmp_path))
    outputs = training.logits(
        experiments.trained(run), flowers.load("test").images, size=32, statistics="imagenet"
    )
    recorded = torch.tensor(run.results["probabilities"])
    torch.testing.assert_close(outputs.softmax(1), recorded, atol=1e-4, rtol=0)
    assert run.accuracy == training.accuracy(recorded, flowers.load("test").labels)


def test_mirrored_answers_are_the_mean_over_both_images(photographs, monkeypatch):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 2, 56, 56), torch.nn.Flatten(), torch.nn.Linear(32, 5)]
    model = torch.nn.Sequential(*layers)
    monkeypatch.setattr(experiments, "trained", lambda run: model)
    images = flowers.load("test").images
    for protocol in ("augmented", "mirrored"):
        run = runs.Run(
            "flowers",
            "mobilenet_v3_small",
            protocol=protocol,
            accuracy=0,
            results={"recipe": RECIPE},
            **PROVENANCE,
        )
        one, other = (
            training.logits(model, x, size=224, statistics="imagenet")
            for x in (images, images[:, :, ::-1].copy())
        )
        expected = (one + other) / 2 if protocol == "mirrored" else one
        torch.testing.assert_close(experiments.outputs(run, images), expected)
    assert (one - other).abs().max() > 0.01


def test_copies_are_found_brighter_mirrored_and_noisy_but_not_by_colour_alone(drawn):
    rng = np.random.default_rng(0)
    images = drawn[0][:12]
    brighter = (images[0] * 0.7 + 20).astype(np.uint8)
    noisy = (images[1].astype(int) + rng.integers(-20, 21, (224, 224, 3))).clip(0, 255)
    red = np.full((2, 224, 224, 3), (200, 10, 10), np.uint8) + rng.integers(0, 9, (2, 224, 224, 3))
    made = [brighter, noisy.astype(np.uint8), images[2][:, ::-1], *red.astype(np.uint8)]
    pairs = flowers.near_duplicates(np.stack([*images, *made]))
    assert sorted(pair[:2] for pair in pairs) == [(0, 12), (1, 13), (2, 14)]
    assert [pair[2] for pair in pairs] == sorted((pair[2] for pair in pairs), reverse=True)


def test_class_maps_of_a_linear_classifier_average_to_the_logits():
    torch.manual_seed(0)
    model = flowers.build("mobilenet_v2").eval()
    x = torch.randn(2, 3, 96, 96)
    maps = flowers.class_maps(model, x)
    assert maps.shape == (2, 5, 3, 3)
    torch.testing.assert_close(maps.mean((2, 3)), model(x))


_COMMON = {
    **PROVENANCE,
    "experiment": "flowers",
    "protocol": "scratch",
    "results": {"probabilities": [], "recipe": RECIPE},
}
#: Recorded runs of every network; V3-Small is the best MobileNet that kept weights.
RECORDED = [
    runs.Run(model="vgg19", accuracy=0.95, checkpoint="c.pt", **_COMMON),
    runs.Run(model="mobilenet_v2", accuracy=0.7, checkpoint="a.pt", **_COMMON),
    runs.Run(model="mobilenet_v3_small", accuracy=0.8, checkpoint="b.pt", **_COMMON),
    runs.Run(model="mobilenet_v3_large", accuracy=0.9, **_COMMON),
]


def test_trainings_come_in_the_books_order(monkeypatch):
    monkeypatch.setattr(runs, "load_runs", lambda _: RECORDED)
    assert [model for _, model in flowers.trainings()] == [*flowers.NAMES]


def test_the_figure_shows_each_accuracy_over_its_cost(monkeypatch):
    monkeypatch.setattr(runs, "load_runs", lambda _: RECORDED)
    ax = Figure().subplots()
    flowers.draw_accuracies(ax, lambda run: 10 ** [*flowers.NAMES].index(run.model))
    points = {tuple(bars[0].get_xydata()[k]) for bars in ax.containers for k in range(4)}
    assert points == {(1, 0.7), (10, 0.9), (100, 0.8), (1000, 0.95)}
    assert [text.get_text() for text in ax.texts] == ["V2", "V3-Large", "V3-Small", "VGG-19"]
