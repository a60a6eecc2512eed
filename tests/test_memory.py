"""The peak of the memory that tensors hold, and with it what each gradient of a solve needs."""

import platform
import subprocess
import sys

import pytest
import torch

from mnlib.cost import PeakMemory
from mnlib.ode import odeint
from mnlib.residual import LinearBottleneck, VectorField, group_norm


def test_peak_follows_the_lives_of_storages():
    with PeakMemory() as memory:
        a = torch.ones(1000)  # 4,000 bytes
        b = a + 1
        assert memory.peak == 8000
        view = b.view(10, 100)
        del b  # the view keeps it
        view.mul_(2)  # in place: nothing new
        assert memory.peak == 8000
        c = view * 2
        assert memory.peak == 12000
        del a, view
        d = c + c
    assert memory.peak == 12000
    assert d.shape == (10, 100)


def test_peak_sees_the_graph_and_the_backward_pass():
    x = torch.ones(1000, requires_grad=True)
    with PeakMemory() as memory:
        y = x
        for _ in range(10):
            y = torch.tanh(y)
        assert memory.peak == 40_000
        y.sum().backward()
    assert 44_000 <= memory.peak <= 52_100


def peak(gradient, steps):
    torch.manual_seed(0)
    field = VectorField(LinearBottleneck(8, 48, group_norm, torch.nn.SiLU), 8)
    h = torch.randn(4, 8, 8, 8, requires_grad=True)
    t = torch.tensor([0.0, 1.0])
    with PeakMemory() as memory:
        end = odeint(field, h, t, method="rk4", step_size=1 / steps, gradient=gradient)[-1]
        end.square().mean().backward()
    return memory.peak


def test_memory_of_the_three_gradients():
    """Backpropagation grows with the steps, checkpoints by a state each, the adjoint not at all."""
    state = 4 * 8 * 8 * 8 * 4
    few, many = peak("backprop", 4), peak("backprop", 16)
    assert 3.5 * few < many < 4.1 * few
    assert peak("checkpoint", 16) < 0.2 * many
    assert peak("checkpoint", 16) - peak("checkpoint", 4) <= 12 * state
    assert peak("adjoint", 16) <= 1.01 * peak("adjoint", 4)
    assert peak("adjoint", 4) < 0.5 * few


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="acts on glibc")
def test_freed_memory_serves_again_without_page_faults():
    program = """
import os, resource, torch
from mnlib.lab.training import keep_freed
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
keep_freed()
def use(): parts = [torch.ones(6_000_000) for _ in range(4)]
use()
use()
before = faults()
use()
print(faults() - before, os.environ["THP_MEM_ALLOC_ENABLE"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.stderr
    faults, huge_pages = map(int, done.stdout.split())
    assert faults < 20
    assert huge_pages == 1
