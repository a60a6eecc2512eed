"""The networks as ONNX graphs: onnxruntime on the CPU computes what PyTorch does."""

import json

import onnxruntime
import pytest
import torch
from test_mobilenet import lively

from mnlib import mobilenet
from mnlib.cost import count_macs
from mnlib.gates import SqueezeExcitation, watch
from mnlib.lab import data, experiments, export, flowers, runs
from mnlib.lab.architecture import without_gates

RECORDED = [r for r in runs.load_runs() if "mobilenet" in r.model and r.checkpoint and r.epochs]
NETWORKS = {
    "mobilenet_v1": lambda: lively(mobilenet.mobilenet_v1()).eval(),
    "mobilenet_v3_large": lambda: lively(mobilenet.mobilenet_v3_large()).eval(),
    **{r.name: lambda r=r: experiments.trained(r) for r in RECORDED},
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def asked(graph, x):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return [torch.tensor(y) for y in session.run(None, {"x": x.numpy()})]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_graph_gives_pytorchs_logits_for_any_number_of_images(network):
    model = NETWORKS[network]()
    graph = export.export(model)
    for n in (1, 3):
        x = torch.randn(n, 3, 224, 224)
        with torch.inference_mode():
            logits = model(x)
        assert logits.std() > 0.1
        (found,) = asked(graph, x)
        torch.testing.assert_close(found, logits, atol=1e-3, rtol=0)


def test_an_opened_network_shows_its_maps_and_its_gates():
    model = lively(mobilenet.mobilenet_v3_small(5)).eval()
    x = torch.randn(2, 3, 224, 224)
    graph = export.export(export.Opened(model), names=["logits", "maps", *"abcdefghi"])
    logits, maps, *gates = asked(graph, x)
    with torch.inference_mode():
        expected, answer = watch(model, lambda: model(x))
    torch.testing.assert_close(logits, answer, atol=1e-3, rtol=0)
    # random weights make maps of some hundreds, which float32 itself knows to 1e-5 of that
    places = flowers.class_maps(model, x)
    assert (maps - places).abs().max() < 1e-4 * places.abs().max()
    torch.testing.assert_close(gates, expected, atol=1e-4, rtol=0)
    # the classifier stands in the graph once
    assert len(graph) < 4.2 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("graph", export.TIMED)
def test_what_is_timed_computes_without_denormals(graph):
    build, shape = export.TIMED[graph]
    model = export.alike(build())
    weights = [p.flatten()[0].item() for p in model.parameters() if p.ndim > 1]
    assert len({*weights}) == len(weights), "two layers would share their weights"
    (y,) = asked(export.export(model, shape), torch.ones(1, *shape))
    assert 1e-6 < y.min() <= y.max() < 1e6


def test_what_takes_turns_is_told_with_its_cost():
    told = export.telephone()
    groups = told["groups"]
    assert {v["graph"] for group in groups for v in group["variants"]} == {*export.TIMED}
    regular, separable = groups[2]["variants"]
    assert regular["madds"] == 9 * 512 * 512 * 14 * 14
    assert separable["madds"] == (9 + 512) * 512 * 14 * 14
    assert json.loads(json.dumps(told))["groups"][0]["variants"][2]["parameters"] == 5_483_032
    assert told["quote"].endswith("saves 7 milliseconds, which 11% of the training time.")
    assert [row["of"] for row in export.telephone_rows()][:2] == ["before the redesign", "after"]


def test_the_network_that_looks_at_photographs_is_told_with_its_record():
    (row,) = export.photograph_rows()
    best = export.best_small()
    assert f"{100 * best.accuracy:.1f} %" in row["accuracy"]
    assert row["record"] == best.name
    assert best.name in export.photograph()["about"]


def test_the_ungated_network_lacks_the_gates_and_nothing_else():
    model = mobilenet.mobilenet_v3_large()
    without = without_gates(model)
    gates = sum(m.fc1.weight.numel() * 2 for m in model.modules() if hasattr(m, "fc1"))
    assert not any(isinstance(m, SqueezeExcitation) for m in without.modules())
    assert any(isinstance(m, SqueezeExcitation) for m in model.modules())
    assert count_macs(model) - count_macs(without) == gates


def test_all_that_the_pieces_load_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name: {"ort.mjs": name.encode()})
    monkeypatch.setattr(export, "TIMED", {"regular": export.TIMED["regular"]})
    export.write_photograph(tmp_path)
    export.write_telephone(tmp_path)
    names = ["ort.mjs", "photograph.onnx", "regular.onnx.gz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "ort.mjs").read_bytes() == b"onnxruntime_web"
    assert (tmp_path / "regular.onnx.gz").stat().st_size < 20_000
    small = [r for r in RECORDED if r.experiment == "flowers" and r.model == "mobilenet_v3_small"]
    best = export.best_small()
    assert best.accuracy == max(run.accuracy for run in small)
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        logits = experiments.trained(best)(x)
    found, *_ = asked((tmp_path / "photograph.onnx").read_bytes(), x)
    torch.testing.assert_close(found, logits, atol=1e-3, rtol=0)


def test_without_the_runtime_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="mnlib fetch onnxruntime_web"):
        export.write_photograph(tmp_path / "play")
    assert not (tmp_path / "play").exists()
