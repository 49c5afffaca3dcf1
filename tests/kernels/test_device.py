"""Where the Triton path refuses to run, and what it says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tsgdn2.kernels.gpu import device
from tsgdn2.kernels.gpu.device import FAMILIES, assume, family, refusal
from tsgdn2.kernels.gpu.launches import LAUNCHES, choose

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_tensors_of_the_cpu_are_refused_with_what_to_do() -> None:
    assert refusal(CPU) == "it needs tensors on a GPU, these are on cpu; move them with .to('cuda')"


@pytest.mark.parametrize("version", [(3, 5), (2, 9), (0, 0)])
def test_compilers_known_to_be_wrong_are_refused_by_name(
    version: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_version", lambda: version)
    assert f"triton {version[0]}.{version[1]} gives wrong gradients" in (refusal(GPU) or "")
    assert "install 3.6 or later" in (refusal(GPU) or "")


def test_a_machine_without_triton_is_told_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_version", lambda: None)
    assert "pip install triton" in (refusal(GPU) or "")


def test_the_cpu_path_does_not_wait_for_triton() -> None:
    program = """
import sys, torch
from tsgdn2.kernels.ops import gdn2_scan
x = torch.rand(1, 20, 1, 4)
gdn2_scan(x, x, x, -x, x, x)
sys.exit("triton" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("kernel", LAUNCHES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_launch_for_every_kernel_and_size(kernel: str, name: str) -> None:
    with assume(name):
        assert family(CPU) == name
    for size in (2, 4):
        for widest in (1, 16, 80, 256):
            launch = choose(kernel, name, size, widest, widest)
            assert 16 <= launch.tile <= max(16, 2 * widest)
            assert launch.tile & (launch.tile - 1) == 0
            assert launch.rows in (16, 32, 64)
