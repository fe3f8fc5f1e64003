"""Writes ``banded_attention.json``: what the original code of the banded methods gives (README.md says how to run it).

    python tests/data/banded_attention_oracle.py FOLDER

FOLDER holds clones of bojone/rerope, datamllab/LongLM, HKUNLP/ChunkLlama, HKUNLP/STRING, Glaciohound/LM-Infinite and
mit-han-lab/streaming-llm under these names. Their attention is run as it is, on states from formulas in place of a
model's: of transformers there is only what they import from it, and flash attention is written out.
"""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Optional, Union

import torch
from torch import nn
from torch.nn import functional

TOKENS, HEADS, KEY_HEADS, WIDTH = 60, 4, 2, 8
ROWS = (0, 5, 17, 31, 32, 40, 59)
THETA = 10000.0


def states(heads: int, seed: float) -> torch.Tensor:
    """Return ``[1, heads, TOKENS, WIDTH]`` that every version of torch gives."""
    index = torch.arange(heads * TOKENS * WIDTH, dtype=torch.float64)
    return (2 * torch.sin(seed * index + 0.3 * seed * index.sqrt())).float().view(1, heads, TOKENS, WIDTH)


QUERY, KEY, VALUE = states(HEADS, 1.3), states(KEY_HEADS, 2.1), states(KEY_HEADS, 0.7)
FREQUENCIES = THETA ** (-torch.arange(0, WIDTH, 2).float() / WIDTH)


def repeat_kv(hidden: torch.Tensor, times: int) -> torch.Tensor:
    return hidden.repeat_interleave(times, dim=1)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def cos_sin(positions: torch.Tensor, scaling: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    angles = positions.float()[..., None] / scaling * FREQUENCIES
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def table(scaling: float = 1.0) -> Any:
    """Return a rotary module as transformers 4.31 had it: cos and sin of all positions up to seq_len."""
    return lambda value, seq_len: tuple(each[None, None] for each in cos_sin(torch.arange(int(seq_len)), scaling))


def flash(
    q: Any, k: Any, v: Any, causal: bool = False, window_size: Any = (-1, -1), return_attn_probs: bool = True
) -> Any:
    """Attention of ``[batch, tokens, heads, width]`` with its log-sum-exp ``[batch, heads, tokens]``."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    k, v = (repeat_kv(each, q.shape[1] // each.shape[1]) for each in (k, v))
    logits = q @ k.transpose(2, 3) / math.sqrt(WIDTH)
    behind = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2] - torch.arange(k.shape[2])
    allowed = behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    if window_size[0] >= 0:
        allowed &= behind <= window_size[0]
    logits = logits.masked_fill(~allowed, -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2), logits.logsumexp(-1), None


def original(file: Path, **more: Any) -> dict[str, Any]:
    """Run a file of an original in a name space of its own, without its imports."""
    source = ast.parse(file.read_text())
    source.body = [node for node in source.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    scope: dict[str, Any] = {
        "torch": torch, "nn": nn, "F": functional, "math": math, "np": SimpleNamespace(log=math.log), "Any": Any,
        "Optional": Optional, "Tuple": tuple, "Union": Union, "List": list, "Cache": object, "repeat_kv": repeat_kv,
        "rotate_half": rotate_half, "flash_attn_func": flash, "PretrainedConfig": object, "LlamaConfig": object,
        "BaseModelOutputWithPast": object, "CausalLMOutputWithPast": object, "LlamaAttention": SimpleNamespace(),
        "transformers": ModuleType("transformers"), "warnings": ModuleType("warnings"), "types": ModuleType("types"),
        "__name__": file.stem, **more,
    }  # fmt: skip
    exec(compile(source, str(file), "exec"), scope)  # noqa: S102
    return scope


def layer(**more: Any) -> Any:
    """Return what the originals call ``self``; hidden states are slots, for which it projects the states above."""

    def project(given: torch.Tensor) -> Any:
        flat = given[0].transpose(0, 1).reshape(TOKENS, -1)
        return lambda hidden: flat[hidden[..., 0].long()].clone()

    return SimpleNamespace(
        q_proj=project(QUERY), k_proj=project(KEY), v_proj=project(VALUE), o_proj=lambda output: output,
        num_heads=HEADS, num_key_value_heads=KEY_HEADS, num_key_value_groups=HEADS // KEY_HEADS, head_dim=WIDTH,
        hidden_size=HEADS * WIDTH, pretraining_tp=1, config=SimpleNamespace(pretraining_tp=1), attention_dropout=0.0,
        training=False, layer_idx=0, **more,
    )  # fmt: skip


def slots(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop)[None, :, None]


CAUSAL = torch.full((TOKENS, TOKENS), torch.finfo(torch.float32).min).triu(1)[None, None]
ALL = torch.arange(TOKENS)[None]


def rerope(folder: Path, leaky: bool) -> torch.Tensor:
    scope = original(folder / "rerope" / ("leaky_rerope_patch.py" if leaky else "rerope_patch.py"),
                     LlamaRotaryEmbedding=None, LlamaLinearScalingRotaryEmbedding=None)  # fmt: skip
    scope |= {"training_length": 32, "window": 8, "scaling_factor": 4}
    module = layer(rotary_emb=table(), rotary_emb2=table(4))
    forward = scope["forward_with_leaky_rerope" if leaky else "forward_with_rerope"]
    forward.__globals__.update(scope)
    return forward(module, slots(0, TOKENS), CAUSAL, ALL)[0]


def self_extend(folder: Path, group: int) -> torch.Tensor:
    scope = original(folder / "LongLM" / "self_extend_patch" / "Llama.py")
    rotary = lambda value, positions, seq_len=None: cos_sin(positions)  # noqa: E731
    return scope["self_extend_forward"](
        layer(rotary_emb=rotary), slots(0, TOKENS), CAUSAL, ALL, group_size_1=group, group_size_2=8
    )[0]


def chunk_llama(folder: Path) -> torch.Tensor:
    text = (folder / "ChunkLlama" / "chunkllama_attn_replace.py").read_text()
    # Weights of the merge are rounded to bfloat16 whatever the model's precision: not here.
    rewritten = folder / "chunkllama_fp32.py"
    rewritten.write_text(text.replace("torch.bfloat16", "torch.float32"))
    scope = original(rewritten)
    scope["forward"].__globals__.update(chunk_size=24, local_window=4)
    rotary = scope["ChunkLlamaRotaryEmbedding"](WIDTH, max_position_embeddings=32, base=THETA)
    return scope["forward"](layer(rotary_emb=rotary), slots(0, TOKENS), None, ALL)[0]


def string(folder: Path) -> torch.Tensor:
    """Decode from the window on, one token at a time: the original's prefill counts distance 12 twice."""

    class Cuda:
        @staticmethod
        def fwd_kvcache(q: Any, k: Any, v: Any, *rest: Any) -> Any:
            return flash(q, k, v)[:2]

    scope = original(folder / "STRING" / "string_for_llama.py", flash_attn_cuda=Cuda, CrossEntropyLoss=None)
    scope["forward"].__globals__.update(diag_size=12, local_window=3, attention_factor=0.1 * math.log(2) + 1)
    factor = 0.1 * math.log(2) + 1
    rotary = lambda value, seq_len: tuple(each * factor for each in cos_sin(torch.arange(int(seq_len))))  # noqa: E731
    cache = {0: torch.zeros(1, TOKENS, 2, KEY_HEADS, WIDTH), "cache_seqlens": torch.tensor([0])}
    module, outputs = layer(rotary_emb=rotary), []
    with_cache = scope["forward"]
    outputs.append(with_cache(module, slots(0, 12), None, ALL[:, :12], cache)[0])
    outputs += [with_cache(module, slots(i, i + 1), None, ALL[:, i : i + 1], cache)[0] for i in range(12, TOKENS)]
    return torch.cat(outputs, dim=1)


def lm_infinite(folder: Path) -> torch.Tensor:
    attention = original(folder / "LM-Infinite" / "models" / "lambda_attention.py")
    scope = original(
        folder / "LM-Infinite" / "models" / "llama.py", lambda_matmul=attention["lambda_matmul"], Model_Base=object,
        LlamaDecoderLayer=None, LlamaForCausalLM=None, LlamaTokenizer=None,
    )  # fmt: skip
    rotary = SimpleNamespace(inv_freq=FREQUENCIES)
    module = layer()
    # The original has no grouped heads.
    for name, given in (("k_proj", KEY), ("v_proj", VALUE)):
        flat = repeat_kv(given, HEADS // KEY_HEADS)[0].transpose(0, 1).reshape(TOKENS, -1)
        setattr(module, name, lambda hidden, flat=flat: flat.clone()[None])

    class Rotary:
        inv_freq = rotary.inv_freq

        def __call__(self, value: Any, positions: torch.Tensor) -> Any:
            return cos_sin(positions)

    module.rotary_emb = Rotary()
    forward = scope["attn_forward_factory"](module, True, 16, 3, 16, 0, None, None, None, None, 0)
    return forward(slots(0, TOKENS), CAUSAL, ALL)[0]


def streaming(folder: Path) -> torch.Tensor:
    """One token at a time; before each the cache is cut to 3 first and 12 recent tokens."""
    library = folder / "streaming-llm" / "streaming_llm"
    shift, kept = original(library / "pos_shift" / "modify_llama.py"), original(library / "kv_cache.py")
    cut = kept["StartRecentKVCache"](start_size=3, recent_size=12)
    module, past, outputs = layer(rotary_emb=table()), None, []
    for index in range(TOKENS):
        position = torch.tensor([[0 if past is None else past[0].shape[2]]])
        output, _, past = shift["llama_pos_shift_attention_forward"](
            module, slots(index, index + 1), None, position, past, use_cache=True
        )
        [past] = cut([past])
        outputs.append(output)
    return torch.cat(outputs, dim=1)


def main() -> None:
    """Write the file beside this one."""
    folder = Path(sys.argv[1])
    mscale = 0.05 * math.log(TOKENS / 32) + 1
    cases: list[tuple[str, str, dict[str, Any], torch.Tensor]] = [
        ("rerope", "rerope", {"window": 8}, rerope(folder, leaky=False)),
        ("leaky-rerope", "rerope", {"window": 8, "slope": 4}, rerope(folder, leaky=True)),
        ("self-extend", "LongLM", {"window": 8, "group": 4}, self_extend(folder, 4)),
        ("self-extend", "LongLM", {"window": 8, "group": 3, "floor_shift": False}, self_extend(folder, 3)),
        ("dca", "ChunkLlama", {"chunk_size": 24, "local_window": 4, "attention_factor": mscale}, chunk_llama(folder)),
        ("string", "STRING", {"shift": 12, "window": 3, "attention_factor": 0.1 * math.log(2) + 1}, string(folder)),
        ("lm-infinite", "LM-Infinite", {"window": 16, "sinks": 3}, lm_infinite(folder)),
        ("streaming-llm", "streaming-llm", {"window": 16, "sinks": 3}, streaming(folder)),
    ]
    written = {
        "about": "outputs [tokens, heads * width] of the originals' attention at some tokens; README.md says how",
        "shape": {"tokens": TOKENS, "heads": HEADS, "key_heads": KEY_HEADS, "width": WIDTH, "theta": THETA,
                  "training_context": 32, "rows": ROWS},
        "cases": [
            {
                "method": method,
                "params": params,
                "original": f"{name} {_commit(folder / name)}",
                "output": [[round(value, 5) for value in output[0, row].tolist()] for row in ROWS],
            }
            for method, name, params, output in cases
        ],
    }  # fmt: skip
    text = json.dumps(written, indent=1)
    # One line for each list of numbers.
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    Path(__file__).with_name("banded_attention.json").write_text(text + "\n")


def _commit(folder: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
