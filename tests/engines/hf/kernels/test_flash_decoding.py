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
from longctx_bench.engines.hf.kernels import flash_decoding

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
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))],
)
@pytest.mark.parametrize(("scaling", "whole"), [("0.3", False), ("None", True)], ids=["masked", "whole"])
def test_equals_sdpa_and_reads_nothing_that_is_masked(
    case: str, scaling: str, whole: bool, error: float, device: str
) -> None:  # fmt: skip
    # Triton asks for its interpreter when it is imported, which another test may have done.
    code = COMPARED.format(case=case, scaling=scaling, whole=whole, error=error, device=device)
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "TRITON_INTERPRET": str(int(device == "cpu"))}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
