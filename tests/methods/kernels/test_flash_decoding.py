"""Flash decoding, in Triton's interpreter and on a GPU; Triton comes with vLLM, and with torch for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

COMPARED = """
import torch
from types import SimpleNamespace
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from longctx_bench.methods.kernels import flash_decoding

rows, heads, groups, places, size, least, dtype = {case}
flash_decoding._MIN_SPLIT = least
torch.manual_seed(0)
torch.set_default_device({device!r})
query = torch.randn(rows, 1, heads, size, dtype=dtype).transpose(1, 2)
# Keys and values are views of longer buffers, as in a cache.
key, value = (torch.randn(rows, groups, places + 9, size, dtype=dtype)[:, :, :places] for _ in range(2))
told = torch.rand(rows, 1, 1, places) < 0.6
told[..., :70] = False
told[0, ..., 100:] = False
told[..., 80] = True
if not {whole}:
    key[:, :, :70] = value[:, :, :70] = torch.nan
module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
plain = [each.double().nan_to_num() for each in (query, key, value)]
if {whole}:
    told[:] = True
expected, _ = sdpa_attention_forward(module, *plain, told, scaling={scaling})
mask = None if {whole} else told
found, weights = flash_decoding.one_query_attention(module, query, key, value, mask, scaling={scaling})
assert weights is None and found.shape == (rows, 1, heads, size) and found.is_contiguous(), found.shape
torch.testing.assert_close(found.double(), expected, atol={error}, rtol={error})
"""


BANDED = """
import torch
from longctx_bench.methods.kernels import flash_decoding
from longctx_bench.methods import METHODS
from longctx_bench.methods.banded_attention import BandedRotation, make_tables
from longctx_bench.methods.banded_decoding import attend_one_query
from longctx_bench.methods.base import BaseModelInfo

rows, heads, groups, places, size, dtype = {case}
flash_decoding._MIN_SPLIT = 64
torch.manual_seed(0)
states = [torch.randn(rows, n, length, size) for n, length in ((heads, 1), (groups, places), (groups, places))]
mask = torch.arange(places) >= torch.arange(rows)[:, None] * 40
for name in ("self-extend", "leaky-rerope", "streaming-llm", "dca"):
    bands = METHODS[name]().bands(BaseModelInfo("layer", 64, {{"model_type": "llama"}}), places)
    rotation = BandedRotation(bands, (1e4 ** (-torch.arange(0, size, 2) / size)).tolist(), 1.1)
    for told in (None, mask[:, None, None]):
        expected_tables = make_tables(rotation, (1, places, torch.float32), told, torch.device("cpu")).decoding
        expected = attend_one_query(expected_tables, *states, 0.2)
        device = torch.device({device!r})
        tables = make_tables(
            rotation, (1, places, dtype), told if told is None else told.to(device), device
        ).decoding
        found = flash_decoding.attend(
            *(each.to(device, dtype) for each in states), tables.is_attended[:, None, None], 0.2 * tables.factor,
            (tables.cos, tables.sin),
        )
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.cpu(), expected, atol={error}, rtol={error})
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from longctx_bench.methods.kernels import flash_decoding

dtype, size, is_rotated = {case}
constants = flash_decoding.kernel_constants(2, 3, size, 256, {{"bf16": 2, "fp32": 4}}[dtype], is_rotated)
types = dict.fromkeys(("query", "key", "value"), "*" + dtype) | dict.fromkeys(("partial", "log_sums"), "*fp32")
types |= dict.fromkeys(("cos_ptr", "sin_ptr"), "*" + dtype if is_rotated else "*i1")
types |= {{"mask_ptr": "*i1", "scale": "fp32"}} | dict.fromkeys(constants, "constexpr")
names = flash_decoding._attend_split.arg_names
source = ASTSource(
    flash_decoding._attend_split,
    {{name: types.get(name, "i32") for name in names}},
    {{(names.index(name),): value for name, value in constants.items()}},
)
options = dict(num_warps=flash_decoding.NUM_WARPS, num_stages=flash_decoding.NUM_STAGES)
kernel = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
assert kernel.asm["cubin"]
assert kernel.metadata.shared < 64 * 1024, kernel.metadata.shared
"""


def run(code: str, device: str) -> None:
    """Run code in a process of its own: Triton asks for its interpreter when it is imported, maybe by another test."""
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "TRITON_INTERPRET": str(int(device == "cpu"))}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr


on_each_device = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))],
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("3, 6, 2, 300, 8, 32, torch.float32", 1e-5),
        ("2, 5, 5, 200, 64, 256, torch.float32", 1e-5),
        ("1, 20, 1, 130, 80, 64, torch.float32", 1e-5),
        ("2, 9, 3, 517, 64, 128, torch.float16", 5e-3),
        ("2, 4, 4, 300, 256, 256, torch.float32", 1e-5),
    ],
    ids=["parts", "one-part", "odd-sizes", "half", "wide"],
)
@on_each_device
@pytest.mark.parametrize(("scaling", "whole"), [("0.3", False), ("None", True)], ids=["masked", "whole"])
def test_equals_sdpa_and_reads_nothing_that_is_masked(
    case: str, scaling: str, whole: bool, error: float, device: str
) -> None:  # fmt: skip
    run(COMPARED.format(case=case, scaling=scaling, whole=whole, error=error, device=device), device)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("3, 6, 2, 300, 64, torch.float32", 1e-5),
        ("2, 4, 4, 131, 20, torch.float32", 1e-5),
        ("2, 9, 3, 517, 64, torch.float16", 5e-3),
    ],
    ids=["parts", "odd-sizes", "half"],
)
@on_each_device
def test_keys_are_rotated_by_distance_as_on_a_cpu(case: str, error: float, device: str) -> None:
    run(BANDED.format(case=case, error=error, device=device), device)


@pytest.mark.slow
@pytest.mark.parametrize("case", ['"bf16", 64, True', '"fp32", 128, True', '"bf16", 64, False'])
def test_it_compiles_for_a_gpu_without_one(case: str) -> None:
    run(COMPILED.format(case=case), "cuda")
