"""MobileNetV1, V2, V3-Large and V3-Small: the papers' tables are the code, one row a block.

Sources: Howard et al. (2017), Table 1; Sandler et al. (2018), Table 2; Howard et al. (2019),
Tables 1 and 2. V2 and V3 take and give torchvision's state dicts, and are made of PyTorch's layers.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from torch import Tensor, nn

from mnlib.cost import layers
from mnlib.gates import SqueezeExcitation, round_channels

__all__ = [
    "NONLINEARITIES",
    "V1",
    "V2",
    "V3_LARGE",
    "V3_SMALL",
    "ConvNormActivation",
    "InvertedResidual",
    "MobileNet",
    "Row",
    "convolution_kind",
    "cost_shares",
    "last_stage_after",
    "last_stage_before",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "rows_v2",
    "specification",
]

Norm = Callable[[int], nn.Module]
#: The layers that the tables of MobileNets name.
NONLINEARITIES = {"RE": nn.ReLU, "RE6": nn.ReLU6, "HS": nn.Hardswish}
_norm_v3 = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


class Row(NamedTuple):
    """One row of a MobileNet table, which is one block (Tables 1 and 2 of Howard et al., 2019).

    ``expanded`` is the number of channels between expansion and projection, ``out`` that after the
    projection, ``nonlinearity`` a key of :data:`NONLINEARITIES`, ``stride`` 1 or 2.

    >>> [row.out for row in V3_LARGE if row.stride == 2]
    [24, 40, 80, 160]
    """

    kernel: int
    expanded: int
    out: int
    se: bool
    nonlinearity: str
    stride: int


# out, repetitions, stride of the first. The paper's last row prints 2, but keeps its 7×7 map: 1.
V1 = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))

# expansion factor, out, repetitions, stride of the first repetition
V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

V3_LARGE = (
    # kernel, expanded, out, SE, nonlinearity, stride
    Row(3, 16, 16, False, "RE", 1),
    Row(3, 64, 24, False, "RE", 2),
    Row(3, 72, 24, False, "RE", 1),
    Row(5, 72, 40, True, "RE", 2),
    Row(5, 120, 40, True, "RE", 1),
    Row(5, 120, 40, True, "RE", 1),
    Row(3, 240, 80, False, "HS", 2),
    Row(3, 200, 80, False, "HS", 1),
    Row(3, 184, 80, False, "HS", 1),
    Row(3, 184, 80, False, "HS", 1),
    Row(3, 480, 112, True, "HS", 1),
    Row(3, 672, 112, True, "HS", 1),
    Row(5, 672, 160, True, "HS", 2),
    Row(5, 960, 160, True, "HS", 1),
    Row(5, 960, 160, True, "HS", 1),
)

V3_SMALL = (
    Row(3, 16, 16, True, "RE", 2),
    Row(3, 72, 24, False, "RE", 2),
    Row(3, 88, 24, False, "RE", 1),
    Row(5, 96, 40, True, "HS", 2),
    Row(5, 240, 40, True, "HS", 1),
    Row(5, 240, 40, True, "HS", 1),
    Row(5, 120, 48, True, "HS", 1),
    Row(5, 144, 48, True, "HS", 1),
    Row(5, 288, 96, True, "HS", 2),
    Row(5, 576, 96, True, "HS", 1),
    Row(5, 576, 96, True, "HS", 1),
)


class ConvNormActivation(nn.Sequential):
    """Convolution without bias, batch norm and, unless None, a nonlinearity.

    Maps N×in_channels×H×W to N×out_channels×⌈H/stride⌉×⌈W/stride⌉ for an odd ``kernel``.

    >>> [type(module).__name__ for module in ConvNormActivation(3, 16, 3, "HS", stride=2)]
    ['Conv2d', 'BatchNorm2d', 'Hardswish']
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        nonlinearity: str | None,
        stride: int = 1,
        groups: int = 1,
        norm: Norm = nn.BatchNorm2d,
    ):
        ends, padding = (in_channels, out_channels), kernel // 2
        conv = nn.Conv2d(*ends, kernel, stride, padding, groups=groups, bias=False)
        layers: list[nn.Module] = [conv, norm(out_channels)]
        if nonlinearity is not None:
            if nonlinearity not in NONLINEARITIES:
                known = ", ".join(NONLINEARITIES)
                raise ValueError(f"{nonlinearity!r} is unknown: choose one of {known} or None")
            layers.append(NONLINEARITIES[nonlinearity](inplace=True))
        super().__init__(*layers)


class InvertedResidual(nn.Module):
    """Expand by 1×1, filter depth-wise, gate if asked for, project linearly by 1×1 (one row).

    Maps N×in_channels×H×W to N×row.out×⌈H/stride⌉×⌈W/stride⌉. The input is added when the shape is
    kept: stride 1 and equal channels. There is no expansion layer when ``row.expanded`` equals
    ``in_channels``. ``flat`` names the layers as torchvision's MobileNetV2 does (``conv``, with
    the projection not nested), otherwise as its MobileNetV3 (``block``).

    >>> [InvertedResidual(24, row).shortcut for row in V3_LARGE[2:4]]
    [True, False]
    """

    flat: Final[bool]  # a constant, for TorchScript leaves the other branch out

    def __init__(self, in_channels: int, row: Row, norm: Norm = nn.BatchNorm2d, flat: bool = False):
        super().__init__()
        kernel, expanded, out, se, nonlinearity, stride = row
        if stride not in (1, 2):
            raise ValueError(f"stride {stride} is not that of an inverted residual: give 1 or 2")
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers += [ConvNormActivation(in_channels, expanded, 1, nonlinearity, norm=norm)]
        filters = (expanded, expanded, kernel, nonlinearity, stride, expanded, norm)
        layers += [ConvNormActivation(*filters)]
        if se:
            layers += [SqueezeExcitation(expanded, gate=nn.Hardsigmoid)]
        projection = ConvNormActivation(expanded, out, 1, None, norm=norm)
        self.flat = flat
        if flat:
            self.conv = nn.Sequential(*layers, *projection)
        else:
            self.block = nn.Sequential(*layers, projection)
        self.shortcut = stride == 1 and in_channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection, plus ``x`` where the shape is kept."""
        y = self.conv(x) if self.flat else self.block(x)
        return x + y if self.shortcut else y


class MobileNet(nn.Module):
    """Features, global average pooling, classifier: N×3×H×W floats to N×classes logits.

    >>> layers(MobileNet([nn.Conv2d(3, 8, 3)], [nn.Linear(8, 5)]))[-1].output
    (5,)
    """

    def __init__(self, features: list[nn.Module], classifier: list[nn.Module]):
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(*classifier)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, N×classes."""
        return self.classifier(self.features(x).mean((2, 3)))


def _scaler(width: float):
    if not width > 0:
        raise ValueError(f"width {width} must be positive: 1 gives the paper's network")
    return lambda channels: round_channels(channels * width)


def mobilenet_v1(classes: int = 1000, width: float = 1.0) -> MobileNet:
    """Return MobileNetV1 with random weights, all channels times ``width`` (Howard et al., 2017).

    >>> layers(mobilenet_v1(width=0.25))[-1].macs
    41030272
    """
    scale = _scaler(width)
    channels = scale(32)
    features: list[nn.Module] = [ConvNormActivation(3, channels, 3, "RE", stride=2)]
    for out, repetitions, stride in V1:
        for s in (stride, *[1] * (repetitions - 1)):
            features.append(ConvNormActivation(channels, channels, 3, "RE", s, groups=channels))
            features.append(ConvNormActivation(channels, channels := scale(out), 1, "RE"))
    return MobileNet(features, [nn.Linear(channels, classes)])


def rows_v2(width: float = 1.0) -> list[Row]:
    """Return V2's table with a row for each of its 17 blocks, as those of V3 are written.

    >>> rows_v2()[1]
    Row(kernel=3, expanded=96, out=24, se=False, nonlinearity='RE6', stride=2)
    """
    scale = _scaler(width)
    rows, channels = [], scale(32)
    for factor, out, repetitions, stride in V2:
        for s in (stride, *[1] * (repetitions - 1)):
            rows.append(Row(3, factor * channels, scale(out), False, "RE6", s))
            channels = rows[-1].out
    return rows


def mobilenet_v2(classes: int = 1000, width: float = 1.0) -> MobileNet:
    """Return MobileNetV2, as :func:`mobilenet_v1`; widths below 1 keep the last layer's 1280.

    >>> mobilenet_v2(classes=5, width=0.35).classifier[1]
    Linear(in_features=1280, out_features=5, bias=True)
    """
    channels = _scaler(width)(32)
    features: list[nn.Module] = [ConvNormActivation(3, channels, 3, "RE6", stride=2)]
    for row in rows_v2(width):
        features.append(InvertedResidual(channels, row, flat=True))
        channels = row.out
    last = round_channels(1280 * max(1.0, width))
    features.append(ConvNormActivation(channels, last, 1, "RE6"))
    return MobileNet(features, [nn.Dropout(0.2), nn.Linear(last, classes)])


def _mobilenet_v3(rows: tuple[Row, ...], last: int, classes: int, width: float) -> MobileNet:
    scale = _scaler(width)
    channels = scale(16)
    features: list[nn.Module] = [ConvNormActivation(3, channels, 3, "HS", stride=2, norm=_norm_v3)]
    for row in rows:
        row = row._replace(expanded=scale(row.expanded), out=scale(row.out))
        features.append(InvertedResidual(channels, row, norm=_norm_v3))
        channels = row.out
    features.append(ConvNormActivation(channels, 6 * channels, 1, "HS", norm=_norm_v3))
    return MobileNet(features, _classifier(6 * channels, scale(last), classes))


def _classifier(channels: int, hidden: int, classes: int) -> list[nn.Module]:
    return [
        nn.Linear(channels, hidden),
        nn.Hardswish(inplace=True),
        nn.Dropout(0.2, inplace=True),
        nn.Linear(hidden, classes),
    ]


def mobilenet_v3_large(classes: int = 1000, width: float = 1.0) -> MobileNet:
    """Return MobileNetV3-Large, as :func:`mobilenet_v1`.

    >>> layers(mobilenet_v3_large())[-1].parameters
    5483032
    """
    return _mobilenet_v3(V3_LARGE, 1280, classes, width)


def mobilenet_v3_small(classes: int = 1000, width: float = 1.0) -> MobileNet:
    """Return MobileNetV3-Small, as :func:`mobilenet_v1`.

    >>> layers(mobilenet_v3_small())[-1].parameters
    2542856
    """
    return _mobilenet_v3(V3_SMALL, 1024, classes, width)


def specification(model: MobileNet) -> list[dict[str, str]]:
    """Return the table of a V3 as its paper prints it, read off the modules and their shapes.

    The columns are those of Tables 1 and 2 of Howard et al. (2019), for a 224×224 image.

    >>> list(specification(mobilenet_v3_small())[1].values())
    ['112² × 16', 'bneck, 3×3', '16', '16', '✓', 'RE', '2']
    """
    found = {layer.name: layer for layer in layers(model)}
    letters = {kind: letter for letter, kind in NONLINEARITIES.items()}
    rows = []

    def add(shape, operator, expanded="-", out="-", se=False, modules=(), stride=1):
        channels, side = shape[0], shape[1] if len(shape) > 1 else 1
        nonlinearity = next((letters[type(m)] for m in modules if type(m) in letters), "-")
        row = (f"{side}² × {channels}", operator, expanded, out, "✓" if se else "-", nonlinearity)
        rows.append((*map(str, row), str(stride)))

    for i, child in enumerate(model.features):
        modules = list(child.modules())
        # the gates' convolutions are the only ones with a bias
        convs = [m for m in modules if isinstance(m, nn.Conv2d) and m.bias is None]
        filters = max(convs, key=lambda conv: conv.kernel_size)
        (side, _), block = filters.kernel_size, isinstance(child, InvertedResidual)
        name = f"{'bneck' if block else 'conv2d'}, {side}×{side}"
        expanded, out = filters.out_channels if block else "-", convs[-1].out_channels
        gated = any(isinstance(m, SqueezeExcitation) for m in modules)
        shape, stride = found[f"features.{i}"].input, filters.stride[0]
        add(shape, name, expanded, out, gated, modules, stride)
    last = found["features"].output
    add(last, f"pool, {last[1]}×{last[2]}")
    for i, linear in enumerate(model.classifier):
        if isinstance(linear, nn.Linear):
            shape, out = found[f"classifier.{i}"].input, linear.out_features
            add(shape, "conv2d 1×1, NBN", out=out, modules=model.classifier[i + 1 : i + 2])
    columns = ("Input", "Operator", "exp size", "#out", "SE", "NL", "s")
    return [dict(zip(columns, row, strict=True)) for row in rows]


def convolution_kind(conv: nn.Conv2d) -> str:
    """Return ``depthwise`` (of groups), ``pointwise`` (1×1) or ``convolution``.

    >>> convolution_kind(nn.Conv2d(8, 16, 1))
    'pointwise'
    """
    if conv.groups > 1:
        return "depthwise"
    return "pointwise" if conv.kernel_size == (1, 1) else "convolution"


def cost_shares(model: nn.Module, size: int = 224) -> dict[str, tuple[float, float]]:
    """Return, for each kind of layer, its share of all weights and of all multiply-adds.

    Kinds are those of :func:`convolution_kind`, ``squeeze-excitation`` and ``classifier``. Biases
    and batch norms do not count, as in Table 2 of Howard et al. (2017); multiply-adds are those of
    one size×size image, as :func:`mnlib.cost.layers` counts them.

    >>> [f"{share:.2%}" for share in cost_shares(mobilenet_v1())["pointwise"]]
    ['74.59%', '94.86%']
    """
    weights: dict[str, int] = defaultdict(int)
    madds: dict[str, int] = defaultdict(int)
    gates = {m for s in model.modules() if isinstance(s, SqueezeExcitation) for m in s.modules()}
    for row in layers(model, (3, size, size)):
        module = model.get_submodule(row.name)
        if isinstance(module, nn.Conv2d):
            kind = "squeeze-excitation" if module in gates else convolution_kind(module)
        elif isinstance(module, nn.Linear):
            kind = "classifier"
        else:
            continue
        weights[kind] += module.weight.numel()
        madds[kind] += row.macs
    all_weights, all_madds = sum(weights.values()), sum(madds.values())
    return {kind: (weights[kind] / all_weights, madds[kind] / all_madds) for kind in weights}


def last_stage_before(classes: int = 1000) -> nn.Sequential:
    """Return V3-Large's last stage as the search left it: N×160×7×7 to N×classes.

    Figure 5, top, of Howard et al. (2019): V2's end, which makes its 1,280 features at 7×7.

    >>> layers(last_stage_before(), (160, 7, 7))[-1].macs
    44352960
    """
    return nn.Sequential(
        ConvNormActivation(160, 960, 1, "HS", norm=_norm_v3),
        ConvNormActivation(960, 960, 3, "HS", groups=960, norm=_norm_v3),
        ConvNormActivation(960, 320, 1, None, norm=_norm_v3),
        ConvNormActivation(320, 1280, 1, "HS", norm=_norm_v3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, classes),
    )


def last_stage_after(classes: int = 1000) -> nn.Sequential:
    """Return V3-Large's last stage, redesigned: N×160×7×7 to N×classes.

    Figure 5, bottom, of Howard et al. (2019): pooling comes before the 1,280 features, which are
    made at 1×1, and the filter and projection layers are gone.

    >>> layers(last_stage_after(), (160, 7, 7))[-1].macs
    10035200
    """
    return nn.Sequential(
        ConvNormActivation(160, 960, 1, "HS", norm=_norm_v3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        *_classifier(960, 1280, classes),
    )
