"""The Triton kernel: equal to the PyTorch path when Triton's interpreter runs it, and compiled for GPUs without one."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from panoptic_detr.models.deformable import attention as deformable_attention
from panoptic_detr.models.deformable.attention import SWITCH, DeformableAttention, choose_sampler, sample_levels

SCRIPT = """
import torch
from panoptic_detr.models.deformable.attention import sample_levels, sample_with_grid

torch.manual_seed(0)
shapes = [(5, 7), (3, 4)]
value = torch.randn(2, 47, 2, 6, requires_grad=True)
locations = ((torch.rand(2, 19, 2, 2, 2, 2) - 0.5) * 1.5 + 0.5).requires_grad_()
weights = torch.rand(2, 19, 2, 2, 2, requires_grad=True)
inputs = (value, locations, weights)
found, expected = (f(value, shapes, locations, weights) for f in (sample_levels, sample_with_grid))
assert "sample_tokens" in type(found.grad_fn).__name__ + type(found.grad_fn.next_functions[0][0]).__name__, found.grad_fn
torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
probe = torch.randn_like(found)
for ours, theirs in zip(torch.autograd.grad(found, inputs, probe), torch.autograd.grad(expected, inputs, probe)):
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
far = sample_levels(value, shapes, locations + 1e8, weights)
assert not far.any()
half = sample_levels(value.bfloat16(), shapes, locations, weights)
assert half.dtype == torch.float32
torch.testing.assert_close(half, sample_with_grid(value.bfloat16().float(), shapes, locations, weights), atol=1e-5, rtol=1e-5)
torch.use_deterministic_algorithms(True)
try:
    sample_levels(value, shapes, locations, weights).sum().backward()
except RuntimeError as error:
    assert "adds in no fixed order" in str(error), error
else:
    raise AssertionError("the kernel's backward pass must be refused")
print("equal")
"""


def test_kernel_equals_pytorch():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", SWITCH: "triton", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert result.stdout.endswith("equal\n"), result.stderr


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("value", ["*fp32", "*bf16", "*fp16"])
@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
def test_kernel_compiles_for_a_gpu(monkeypatch, tmp_path, kernel, value):
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    from panoptic_detr.models.deformable import triton as deformable_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(deformable_triton, kernel)
    constants = {"heads": 8, "dim": 32, "levels": 4, "points": 4, "block_queries": 16, "block_dim": 32}
    types = dict.fromkeys(constants, "constexpr") | {"tokens": "i32", "queries": "i32", "geometry": "*i32", "value": value}
    source = compiler.ASTSource(
        fn=function,
        signature={name: types.get(name, "*fp32") for name in function.arg_names},
        constexprs={(function.arg_names.index(name),): number for name, number in constants.items()},
    )
    compiled = compiler.compile(source, target=backends.GPUTarget("cuda", 80, 32))
    assert ".target sm_80" in compiled.asm["ptx"]


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_on_a_gpu(monkeypatch, dtype):
    attention = DeformableAttention(64, num_levels=2, num_heads=4, num_points=4).cuda()
    queries, tokens = torch.randn(2, 50, 64, device="cuda"), torch.randn(2, 80, 64, device="cuda", requires_grad=True)
    references = torch.rand(2, 50, 2, 4, device="cuda", requires_grad=True)
    results = []
    for way in ("triton", "grid"):
        monkeypatch.setenv(SWITCH, way)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            out = attention(queries, references, tokens, [(8, 8), (4, 4)]).float()
        results.append([out, *torch.autograd.grad(out.square().sum(), [tokens, references])])
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for ours, theirs in zip(*results, strict=True):
        assert ((ours - theirs).norm() / theirs.norm()).item() < tolerance


@pytest.fixture
def deterministic():
    def switch(**options):
        torch.use_deterministic_algorithms(True, **options)

    yield switch
    torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_take_the_table_on_cuda(monkeypatch, deterministic):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(deformable_attention, "has_triton", lambda: True)
    tokens = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(1, 8, 1, 4))
    assert choose_sampler(tokens) == "triton"
    deterministic()
    assert choose_sampler(tokens) == "table"
    monkeypatch.setenv(SWITCH, "triton")
    assert choose_sampler(tokens) == "triton"  # the forced one, whose backward pass then says no


def test_atomic_sums_warn_where_deterministic_algorithms_only_warn(deterministic):
    pytest.importorskip("triton")
    from panoptic_detr.models.deformable.triton import refuse_where_deterministic

    refuse_where_deterministic()
    deterministic(warn_only=True)
    with pytest.warns(UserWarning, match="adds in no fixed order.*PANOPTIC_DETR_SAMPLING"):
        refuse_where_deterministic()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_deterministic_algorithms_repeat_on_a_gpu(monkeypatch, deterministic):
    monkeypatch.delenv(SWITCH, raising=False)
    deterministic()
    value = torch.randn(2, 80, 4, 16, device="cuda", requires_grad=True)
    locations, weights = torch.rand(2, 500, 4, 2, 4, 2, device="cuda"), torch.rand(2, 500, 4, 2, 4, device="cuda")
    probe = torch.randn(2, 500, 64, device="cuda")
    first, *others = [
        torch.autograd.grad(sample_levels(value, [(8, 8), (4, 4)], locations, weights), value, probe)[0] for _ in range(5)
    ]
    assert all(torch.equal(first, other) for other in others)


def test_environment_forces_a_way(monkeypatch):
    tokens = torch.zeros(1, 8, 1, 4)
    monkeypatch.delenv(SWITCH, raising=False)
    assert choose_sampler(tokens) == "grid"
    with torch.no_grad():
        assert choose_sampler(tokens) == "table"
    assert choose_sampler(torch.zeros(1, deformable_attention.LARGE_MAP, 1, 4)) == "table"
    for way in ("grid", "table", "triton"):
        monkeypatch.setenv(SWITCH, way)
        assert choose_sampler(tokens) == way
    monkeypatch.setenv(SWITCH, "cuda")
    with pytest.raises(ValueError, match="'cuda' in the environment: it must be auto, grid, table, triton"):
        choose_sampler(tokens)
