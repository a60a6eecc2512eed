"""The measures of gates on gates that are known, and on a network whose gates are set by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_selection import f_classif
from torch import nn

from mnlib import gates
from mnlib.gates import SqueezeExcitation


def test_gates_that_the_class_determines_and_gates_that_never_change():
    labels = torch.arange(5).repeat(20)
    assert gates.between_classes(torch.rand(5, 8)[labels], labels) == pytest.approx(1)
    assert gates.between_classes(torch.full((100, 8), 0.3), labels) == 0


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(0, 3))
def test_share_between_classes_follows_from_scikit_learns_analysis_of_variance(seed, strength):
    """For one channel η² = F / (F + (n − k)/(k − 1))."""
    torch.manual_seed(seed)
    labels = torch.randint(0, 4, (60,)).sort().values
    labels[:4] = torch.arange(4)
    s = torch.rand(60, 1, dtype=torch.float64) + strength * labels[:, None]
    f = f_classif(s.numpy(), labels.numpy())[0][0]
    expected = f / (f + (60 - 4) / (4 - 1))
    assert gates.between_classes(s, labels) == pytest.approx(expected, abs=1e-9)


def test_for_random_labels_the_share_is_that_of_chance():
    torch.manual_seed(0)
    share = gates.between_classes(torch.rand(1000, 200), torch.arange(1000) % 5)
    assert share == pytest.approx(4 / 999, rel=0.15)


def test_a_network_that_lives_by_its_gates():
    """Two constant channels, of which the gates let through the one that says the class."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.se = SqueezeExcitation(8, 1, nn.Hardsigmoid)
            nn.init.zeros_(self.se.fc1.bias)
            nn.init.zeros_(self.se.fc2.bias)
            self.se.fc1.weight.data = torch.eye(8)[:, :, None, None]
            # channels 2 and 3 carry the class; they open channels 0 and 1
            opening = torch.zeros(8, 8)
            opening[0, 2] = opening[1, 3] = 6
            opening[0, 3] = opening[1, 2] = -6
            self.se.fc2.weight.data = opening[:, :, None, None]

        def forward(self, x):
            return self.se(x)[:, :2].mean((2, 3))

    labels = torch.arange(2).repeat(50)
    x = torch.zeros(100, 8, 3, 3)
    x[:, :2] = 1
    x[torch.arange(100), 2 + labels] = 1
    model = Gated()
    found = gates.study(model, lambda: model(x), labels)
    (module,) = found["modules"]
    assert module == {
        "channels": 8,
        "mean": 0.5,
        "spread": 0.125,
        "closed": 1 / 8,
        "open": 1 / 8,
        "between_classes": 1.0,
    }
    assert found["accuracy"]["learned"] == 1
    assert found["accuracy"]["open"] == 0.5
    # an image of the class that its own half has more of meets the means of the other half
    assert 0.4 < found["accuracy"]["mean"] <= 0.5
    assert 0.3 < found["accuracy"]["another image's"] < 0.7
    assert found["only"]["learned"]["open"] == 50
    assert found["only"]["mean"]["learned"] == found["only"]["open"]["learned"] == 0
    for a, others in found["only"].items():
        for b, only in others.items():
            difference = found["accuracy"][a] - found["accuracy"][b]
            assert only - found["only"][b][a] == pytest.approx(100 * difference)


def test_a_summary_is_rounded_to_four_digits():
    found = gates.summary(torch.tensor([[0.0, 1, 0.25], [0.5, 1, 0], [0, 0, 0.8]]), torch.arange(3))
    assert found == {
        "channels": 3,
        "mean": 0.3944,
        "spread": 0.3471,
        "closed": 0.4444,
        "open": 0.2222,
        "between_classes": 1.0,
    }
    gates_of_two = torch.tensor([[0.0], [1.0], [0.5], [1.0]])
    assert gates.summary(gates_of_two, torch.tensor([0, 0, 1, 1]))["between_classes"] == 0.0909


def test_replacements_keep_what_they_say():
    torch.manual_seed(1)
    s = torch.rand(6, 4, 1, 1)
    s[1] = s[0]
    changes = gates.replacements([s.flatten(1)])
    assert torch.equal(changes["learned"](0, s), s)
    channel = changes["another channel's"](0, s)
    torch.testing.assert_close(channel.sort(1).values, s.sort(1).values)
    assert not torch.equal(channel, s)
    assert not torch.equal(channel[0], channel[1])  # a permutation for each image
    assert torch.equal(changes["open"](0, s), torch.ones(6, 4, 1, 1))


def test_mean_gates_are_those_of_images_that_they_are_not_given_to():
    s = torch.eye(10)  # whose gates went into a mean, the mean tells
    change = gates.replacements([s])["mean"]
    for _pass in range(2):
        means = torch.cat([change(0, part[..., None, None]) for part in s.split(4)])[..., 0, 0]
        assert (means.diagonal() == 0).all()
        torch.testing.assert_close(means.sum(1), torch.ones(10))
        assert ((means > 0).sum(1) == 5).all()


def test_an_image_gets_all_gates_of_one_other_image_of_any_batch():
    n = 60
    number = torch.arange(n).float()
    first, second = number[:, None].expand(n, 3), number[:, None].expand(n, 8)
    another = gates.replacements([first, second])["another image's"]
    for _pass in range(2):
        found = []
        for batch in number.split(25):  # the last one is shorter
            for i, channels in enumerate((3, 8)):
                s = another(i, torch.empty(len(batch), channels, 1, 1))
                assert s.shape == (len(batch), channels, 1, 1)
                found.append(s.flatten(1).amax(1))
                assert torch.equal(found[-1], s.flatten(1).amin(1))
        received = torch.cat(found[::2])
        assert torch.equal(received, torch.cat(found[1::2]))
        assert torch.equal(received.sort().values, number)
        assert (received != number).all()
        assert (received // 25 != number // 25).any()
