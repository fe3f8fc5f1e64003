"""``python -m bench.training_throughput``: training speed on random tokens, against the device's matmul rate."""

from __future__ import annotations

import argparse
import time

import torch

from longctx_bench.training.causal_attention import use_training_attention
from longctx_bench.training.mfu import flops_per_token, matmul_rate
from longctx_bench.training.models import fresh_model, without_positions
from longctx_bench.training.optimization import NextTokenLoss
from longctx_bench.training.recipe import Shape

TINY = Shape(hidden_size=320, layers=8, heads=5, kv_heads=5, ffn=640, vocab_size=5504)
SMALL = Shape(hidden_size=576, layers=30, heads=9, kv_heads=3, ffn=1536, vocab_size=49152)
CASES = {
    "tiny-rope": (TINY, "rope", 512, 256),
    "tiny-alibi": (TINY, "alibi", 512, 256),
    "tiny-rnope-swa": (TINY, "rnope-swa", 512, 256),
    "tiny-drope": (TINY, "drope", 512, 256),
    "tiny-drope-virtual": (TINY, "drope", 512, 256),
    "135m": (SMALL, "rope", 2048, 16),
    "135m-drope": (SMALL, "drope", 2048, 16),
    "135m-drope-virtual": (SMALL, "drope", 2048, 16),
}
"""name -> (shape, positions, sequence length, sequences in one pass); ``-virtual`` adds a bias to the keys."""


def measure(name: str, steps: int = 20, compiled: bool = True) -> str:
    """Train one case for ``steps`` steps after a warm-up and return a line of tokens/s and MFU."""
    shape, positions, length, sequences = CASES[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = fresh_model(shape, "rope" if positions == "drope" else positions, length, shape.vocab_size, 0, seed=0)
    if positions == "drope":
        model = without_positions(model, qk_norm=True)
    use_training_attention(model, positions)
    model.to(device)  # type: ignore[arg-type]
    objective: torch.nn.Module = NextTokenLoss(model, "bf16")
    if compiled:
        objective = torch.compile(objective)  # type: ignore[assignment]
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    inputs = {"rows": torch.randint(0, shape.vocab_size, (sequences, length + 1), device=device)}
    if name.endswith("-virtual"):
        inputs["key_bias"] = torch.rand(sequences, length, device=device)

    def step() -> float:
        loss = objective(**inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return float(loss.item())

    for _ in range(3):
        step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    tokens = steps * sequences * length / (time.perf_counter() - began)
    rate = matmul_rate(device)
    share = tokens * flops_per_token(model, length) / rate
    return (
        f"{name}: {tokens:,.0f} tokens/s, MFU {share:.1%} of {rate / 1e12:.3g} TFLOP/s measured "
        f"({sequences} x {length} tokens a step, causal attention counted at half)"
    )


def main() -> None:
    """Measure the cases named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", metavar="CASE", help=" ".join(CASES))
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    chosen = parser.parse_args()
    for name in chosen.case or CASES:
        print(measure(name, compiled=not chosen.eager), flush=True)


if __name__ == "__main__":
    main()
