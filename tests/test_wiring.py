import matplotlib.pyplot as plt
from torch import nn

from mnlib.lab import diagrams
from mnlib.separable import DepthwiseSeparableConv2d


def drawn(*convolutions):
    fig, ax = plt.subplots()
    diagrams.wiring(ax, convolutions, "title")
    ends = {
        tuple(map(tuple, line.get_xydata())) for line in ax.lines if line.get_linestyle() != "None"
    }
    texts = [text.get_text() for text in ax.texts]
    plt.close(fig)
    return ends, texts


def test_every_weighted_pair_of_channels_has_its_line():
    lines, texts = drawn(nn.Conv2d(4, 6, 3, groups=2, bias=False))
    # inputs at 1.5 … −1.5, outputs at 2.5 … −2.5: the upper half reads the upper half
    assert len(lines) == 2 * 2 * 3
    assert all((a > 0) == (b > 0) for (_, a), (_, b) in lines)
    assert texts == ["3×3\n108 weights"]


def test_a_separable_convolution_is_drawn_as_its_two_parts():
    block = DepthwiseSeparableConv2d(3, 5, 3, bias=False)
    lines, texts = drawn(block.depthwise, block.pointwise)
    assert len(lines) == 3 + 15
    assert texts == ["3×3\n27 weights", "1×1\n15 weights"]
