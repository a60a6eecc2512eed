"""The training loop: augmentation, splits, resuming, several processes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F

from mnlib.cifar import NeuralODE
from mnlib.lab import resume, training
from mnlib.lab.images import STATISTICS, prepare, resized_crop, shift
from mnlib.lab.vgg import SmallConvNet

CPU = {"accelerator": "cpu", "devices": 1}


def stripes(n, size=8, seed=0):
    """Images of horizontal or vertical stripes under noise: two classes a small net can learn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    waves = np.where(np.arange(size) % 4 < 2, 80, -80)
    grids = np.stack([np.tile(waves[:, None], (1, size)), np.tile(waves, (size, 1))])
    images = 128 + grids[labels][..., None] + rng.normal(0, 30, (n, size, size, 3))
    return images.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 2),
    )


RECIPE = training.Recipe(sizes=(8,) * 4, batch=16, rate=0.2)


def test_the_loop_learns_what_can_be_learnt():
    images, labels = stripes(128)
    model = net()
    history = training.fit(
        model, images, labels, RECIPE, validation=stripes(64, seed=1), fabric=Fabric(**CPU)
    )
    assert history["loss"][-1] < history["loss"][0] / 2
    assert history["accuracy"][-1] > 0.95
    assert len(history["seconds"]) == 4
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert len(history["losses"]) == 4 * 8  # eight steps an epoch
    np.testing.assert_allclose(np.reshape(history["losses"], (4, 8)).mean(1), history["loss"])
    outputs = training.logits(model, images, size=8, statistics="cifar10", batch=50)
    assert outputs.shape == (128, 2)
    assert training.accuracy(outputs, labels) > 0.95


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_killed_run_resumes_to_the_very_same_losses(tmp_path, monkeypatch, optimiser):
    images, labels = stripes(64)
    recipe = dataclasses.replace(RECIPE, optimiser=optimiser, rate=0.01)
    whole_net = net()
    whole = training.fit(whole_net, images, labels, recipe, seed=5, fabric=Fabric(**CPU))

    path = tmp_path / "state.pt"
    calls = iter(range(100))

    def dies_in_the_third_epoch(*args, original=shift):
        if next(calls) == 9:  # four steps an epoch
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "shift", dies_in_the_third_epoch)
        with pytest.raises(KeyboardInterrupt):
            training.fit(net(), images, labels, recipe, seed=5, progress=path, fabric=Fabric(**CPU))
    resumed_net = net(seed=99)  # its own weights must not matter
    resumed = training.fit(
        resumed_net, images, labels, recipe, seed=5, progress=path, fabric=Fabric(**CPU)
    )
    assert resumed["loss"] == whole["loss"]
    pairs = zip(resumed_net.parameters(), whole_net.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)

    with pytest.raises(ValueError, match="another training"):
        training.fit(net(), images, labels, recipe, seed=6, progress=path, fabric=Fabric(**CPU))


def _two_processes(fabric, folder):
    images, labels = stripes(96)
    model = net()
    model[3] = nn.Identity()  # dropout would draw other masks for half the batch
    history = training.fit(
        model, images, labels, dataclasses.replace(RECIPE, sizes=(8, 8)), fabric=fabric
    )
    if fabric.global_rank == 0:
        torch.save((fabric.world_size, history, model.state_dict()), folder / "out.pt")


def test_two_processes_give_the_losses_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    results = []
    for devices in (1, 2):
        fabric = Fabric(
            accelerator="cpu", devices=devices, strategy="ddp_spawn" if devices > 1 else "auto"
        )
        fabric.launch(_two_processes, tmp_path)
        results.append(torch.load(tmp_path / "out.pt", weights_only=True))
    (one, losses, weights), (two, losses2, weights2) = results
    assert (one, two) == (1, 2)
    np.testing.assert_allclose(losses2["loss"], losses["loss"], rtol=1e-5)
    for key, value in weights.items():
        torch.testing.assert_close(weights2[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs want a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_replayed_step_is_the_step(precision, monkeypatch):
    recorded, record = [], resume.CapturedStep._record
    monkeypatch.setattr(resume.CapturedStep, "_record", lambda *a: recorded.append(1) or record(*a))
    images, labels = stripes(80)
    recipe = dataclasses.replace(
        RECIPE, sizes=(6, 6, 8), penalties=(0.0, 1.0, 1.0), precision=precision
    )
    curves, states = [], []
    for replay in (False, True):
        torch.manual_seed(0)
        model = NeuralODE(2, widths=(4, 6))
        fabric = Fabric(accelerator="cuda", devices=1, precision=precision)
        validation = stripes(64, seed=1)
        curves.append(
            training.fit(
                model, images, labels, recipe, validation=validation, fabric=fabric, replay=replay
            )
        )
        states.append(model.state_dict())
        assert len(recorded) == 3 * replay  # once an epoch
    tolerance = 1e-3 if precision == "32-true" else 3e-2
    for eager, replayed in zip(*(c["losses"] for c in curves), strict=True):
        assert replayed == pytest.approx(eager, abs=tolerance)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=20)
@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 1000))
def test_augmentation_is_a_flip_and_a_crop_of_the_padded_image(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, height, width, generator=generator)
    draws = torch.rand(5, 3, generator=generator)
    reach = min(height, width) // 8
    padded = nn.functional.pad(x, (reach,) * 4, mode="reflect")
    for i, out in enumerate(shift(x, draws)):
        top, left = (int(d * (2 * reach + 1)) for d in draws[i, 1:])
        crop = padded[i, :, top : top + height, left : left + width]
        assert torch.equal(out, crop.flip(2) if draws[i, 0] < 0.5 else crop)


@settings(deadline=None, max_examples=50)
@given(st.floats(0.05, 1), st.integers(0, 10**6))
def test_a_random_crop_is_a_rectangle_of_the_image_enlarged(smallest, seed):
    draws = torch.rand(6, 5, generator=torch.Generator().manual_seed(seed))
    # an image of its own coordinates, in [0, 1]: bilinear sampling returns them exactly
    steps = (torch.arange(40) + 0.5) / 40
    x = torch.stack(torch.meshgrid(steps, steps, indexing="ij")).expand(6, 2, 40, 40)
    out = resized_crop(x, draws, 64, smallest)
    assert out.shape == (6, 2, 64, 64)
    assert out.is_contiguous(memory_format=torch.channels_last)
    for draw, (rows, columns) in zip(draws, out, strict=True):
        # away from the border, where half a pixel is reflected
        top, height = rows[16, 0], 2 * (rows[48, 0] - rows[16, 0])
        left, width = columns[0, 16], 2 * (columns[0, 48] - columns[0, 16])
        if draw[0] < 0.5:
            width = -width
            left = columns[0, 47]
        area = smallest + (1 - smallest) * draw[1]
        ratio = (4 / 3) ** (2 * draw[2] - 1)
        wanted = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        torch.testing.assert_close((width, height), wanted, atol=2e-4, rtol=0)
        # the first sample of the inner half lies a quarter and half a step into the rectangle
        torch.testing.assert_close(
            (left, top),
            tuple(
                (1 - side) * place + side * (0.25 + 0.5 / 64)
                for side, place in zip(wanted, (draw[4], draw[3]), strict=True)
            ),
            atol=2e-4,
            rtol=0,
        )


def test_a_crop_of_the_whole_image_is_the_image_or_its_mirror_image():
    x = torch.rand(2, 3, 24, 24)
    draws = torch.tensor([[0.9, 0.3, 0.5, 0.1, 0.8], [0.1, 0.3, 0.5, 0.1, 0.8]])
    out = resized_crop(x, draws, 24, 1.0)
    torch.testing.assert_close(out, torch.stack([x[0], x[1].flip(2)]), atol=1e-5, rtol=0)


def test_preparing_normalises_resizes_and_stays_channels_last():
    images = torch.randint(0, 256, (4, 12, 12, 3), dtype=torch.uint8)
    x = prepare(images, 12, "imagenet")
    mean, std = (np.array(v) for v in STATISTICS["imagenet"])
    np.testing.assert_allclose(
        x.permute(0, 2, 3, 1).numpy(), (images.numpy() / 255 - mean) / std, atol=1e-5
    )
    half = prepare(images, 6, "imagenet")
    assert half.shape == (4, 3, 6, 6)
    assert x.is_contiguous(memory_format=torch.channels_last)
    draws = torch.rand(4, 3)
    assert shift(x, draws).is_contiguous(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.floats(0.1, 0.9), st.integers(0, 9))
def test_split_is_a_partition_with_equal_shares_of_every_class(counts, share, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    held = min(max(1, round(share * len(labels))), len(labels) - 1)
    kept, out = training.split(labels, held, seed)
    assert len(out) == held
    assert np.array_equal(np.sort(np.concatenate([kept, out])), np.arange(len(labels)))
    # one share of every class, to less than an image
    found, counts = np.bincount(labels[out], minlength=len(counts)), np.array(counts)
    assert ((found - 1) / counts).max() < ((found + 1) / counts).min()


def test_rate_warms_up_and_falls_to_zero():
    rates = [RECIPE.rate_at(epochs) for epochs in (0.0, 0.4, 0.8, 2.4, 4.0)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.1, 0], atol=1e-12)
    assert dataclasses.replace(RECIPE, optimiser="adam", rate=1e-4).rate_at(3.0) == 1e-4


def test_decay_spares_norms_and_biases():
    model = net()
    decayed, spared = training._optimiser(model, RECIPE).param_groups
    assert decayed["weight_decay"] == RECIPE.decay
    assert spared["weight_decay"] == 0
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[6].weight)}


def test_frozen_weights_stay_as_they_are():
    images, labels = stripes(32)
    model = net()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    training.fit(model, images, labels, RECIPE, fabric=Fabric(**CPU))
    assert torch.equal(model[0].weight, before)


def test_bad_input_is_refused_in_one_sentence():
    images, labels = stripes(16)
    with pytest.raises(ValueError, match="epochs"):
        training.Recipe(sizes=())
    with pytest.raises(ValueError, match="1 penalties for 2 epochs"):
        training.Recipe(sizes=(8, 8), penalties=(1.0,))
    with pytest.raises(ValueError, match="optimiser"):
        training.Recipe(sizes=(8,), optimiser="lion")
    with pytest.raises(ValueError, match="statistics"):
        training.Recipe(sizes=(8,), statistics="svhn")
    with pytest.raises(ValueError, match="uint8"):
        training.fit(net(), images.astype(np.float32), labels, RECIPE)
    with pytest.raises(ValueError, match="15 labels"):
        training.fit(net(), images, labels[:-1], RECIPE)
    with pytest.raises(ValueError, match="hold 16"):
        training.split(labels, 16)
    with pytest.raises(FloatingPointError, match="lower rate"):
        training.fit(
            net(), images, labels, dataclasses.replace(RECIPE, rate=1e30), fabric=Fabric(**CPU)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": float("nan")}, "rate nan"),
        ({"rate": 0.0}, "rate 0.0"),
        ({"decay": -1.0}, "decay -1.0"),
        ({"penalties": (1.0, 1.0, 1.0, float("inf"))}, "penalties .*inf"),
        ({"smoothing": 1.5}, "smoothing 1.5"),
        ({"batch": 0}, "batch 0"),
        ({"sizes": (8, 0)}, r"sizes \(8, 0\)"),
    ],
)
def test_a_recipe_that_trains_nothing_sensible_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPE, **change)


def test_images_and_labels_that_do_not_fit_are_refused_before_training(tmp_path):
    images, labels = stripes(32)
    for x, y, message in [
        (images[:0], labels[:0], "0 images"),
        (images, np.where(labels, -100, 0), "from -100"),
        (images, labels.astype(np.float32), "float32"),
        (images, labels + 1, "label 2 is none of 2 classes"),
        (images[..., :1], labels, "3 channels of the statistics 'cifar10'"),
    ]:
        model = net()
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=message):
            training.fit(model, x, y, RECIPE, fabric=Fabric(**CPU), progress=tmp_path / "p.pt")
        assert all(map(torch.equal, before, model.parameters()))
    assert not list(tmp_path.iterdir())


def test_progress_of_other_images_or_with_other_validation_is_refused(tmp_path):
    images, labels = stripes(32)
    path, cpu = tmp_path / "state.pt", Fabric(**CPU)
    training.fit(net(), images, labels, RECIPE, progress=path, fabric=cpu)
    others = stripes(32, seed=1)
    for x, y, validation in [(*others, None), (images, 1 - labels, None), (images, labels, others)]:
        with pytest.raises(ValueError, match="another training"):
            training.fit(
                net(), x, y, RECIPE, progress=path, validation=validation, fabric=Fabric(**CPU)
            )
    again = training.fit(net(), images, labels, RECIPE, progress=path, fabric=Fabric(**CPU))
    assert len(again["loss"]) == 4


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[::-1]])
def test_damaged_progress_is_named_with_the_remedy(tmp_path, damage):
    images, labels = stripes(32)
    path = tmp_path / "state.pt"
    training.fit(net(), images, labels, RECIPE, progress=path, fabric=Fabric(**CPU))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"state\.pt is damaged.*remove it to start afresh"):
        training.fit(net(), images, labels, RECIPE, progress=path, fabric=Fabric(**CPU))


def test_batch_norm_in_several_processes_is_refused_on_the_cpu():
    class Two:  # what Fabric would be in the second of two processes
        world_size, global_rank, device = 2, 1, torch.device("cpu")

    images, labels = stripes(32)
    model = nn.Sequential(nn.Conv2d(3, 2, 8), nn.BatchNorm2d(2), nn.Flatten())
    with pytest.raises(ValueError, match="in 2 processes on the CPU the batch norm '1'"):
        training.fit(model, images, labels, RECIPE, fabric=Two())


def test_small_network_is_plain_convolutions_and_relu():
    model = SmallConvNet()
    weights = model.convolutions
    assert [w.shape[0] for w in weights] == [24, 24, 48, 48, 96, 96, 96]
    assert all(w.shape[2:] == (3, 3) for w in weights)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert sum(p.numel() for p in model.parameters()) < 400_000
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


class Bent(nn.Module):
    """A linear network that notes how it is called, with a penalty."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.kinds = []

    def forward(self, x):
        y = self.layer(x.mean((2, 3)) + x[:, :, 0, 0])
        self.kinds.append((self.training, y.dtype, x.shape[-1]))
        return y

    def penalty(self):
        return self.layer.weight.square().sum()


def test_an_epoch_is_the_recipe_by_hand():
    images, labels = stripes(8)
    recipe = training.Recipe(
        sizes=(8, 4),
        batch=8,
        rate=0.3,
        smoothing=0.2,
        augment=False,
        statistics="imagenet",
        penalties=(0.0, 0.7),
        decay=0.01,
    )
    model, hand = Bent(), Bent()
    training.fit(model, images, labels, recipe, fabric=Fabric(**CPU))
    velocity = [torch.zeros_like(p) for p in hand.parameters()]
    for epoch, (size, penalty) in enumerate(zip(recipe.sizes, recipe.penalties, strict=True)):
        x = prepare(torch.as_tensor(images), size, "imagenet")
        loss = F.cross_entropy(hand(x), torch.as_tensor(labels), label_smoothing=0.2)
        grads = torch.autograd.grad(loss + penalty * hand.penalty(), hand.parameters())
        rate = recipe.rate_at(epoch + 0.5)
        with torch.no_grad():
            for p, g, v in zip(hand.parameters(), grads, velocity, strict=True):
                g = g + 0.01 * p if p.ndim > 1 else g
                v.mul_(0.9).add_(g)
                p.sub_(rate * (g + 0.9 * v))
    for a, b in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("augment", [False, True])
def test_an_epoch_sees_images_of_its_size_whatever_is_cut_out(augment):
    images, labels = stripes(32)
    seen = []
    model = net()
    note = lambda module, args: seen.append(args[0].shape[-1]) if module.training else None  # noqa: E731
    model.register_forward_pre_hook(note)
    recipe = training.Recipe(sizes=(6, 8), batch=32, crop=0.5, augment=augment)
    training.fit(model, images, labels, recipe, fabric=Fabric(**CPU))
    assert seen == [6, 8]


def test_mirroring_is_left_out_where_the_recipe_says_so(monkeypatch):
    images, labels = stripes(32)
    flips = []
    monkeypatch.setattr(training, "shift", lambda x, draws: flips.append(draws[:, 0]) or x)
    for mirror in (True, False):
        recipe = training.Recipe(sizes=(8,), batch=32, mirror=mirror, penalties=(0.0,))
        training.fit(Bent(), images, labels, recipe, fabric=Fabric(**CPU))
    assert (flips[0] < 0.5).any()
    assert not (flips[1] < 0.5).any()


def test_half_precision_in_training_only():
    images, labels = stripes(8)
    model = Bent()
    recipe = training.Recipe(sizes=(4, 8), precision="bf16-mixed")
    training.fit(model, images, labels, recipe, validation=(images, labels))
    in_training = {(True, torch.bfloat16, 4), (True, torch.bfloat16, 8)}
    assert set(model.kinds) == in_training | {(False, torch.float32, 8)}


@pytest.mark.parametrize("precision", ["bf16-true", "half"])
def test_a_precision_that_would_change_the_weights_is_refused(precision):
    with pytest.raises(ValueError, match=f"precision '{precision}'.*'bf16-mixed'"):
        training.Recipe(sizes=(8,), precision=precision)
