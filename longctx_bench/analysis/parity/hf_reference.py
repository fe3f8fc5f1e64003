"""Transformers' side of a certificate: what plain ``generate`` answers, and how exact its numbers are themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longctx_bench.analysis.parity.output_comparison import Answer, Rotation, first_difference
from longctx_bench.core.types import Request
from longctx_bench.engines import memory
from longctx_bench.models.metadata import end_ids
from longctx_bench.models.variant import ModelUnderTest

TOP = 20
"""Tokens whose log-probabilities are kept at each step: vLLM gives no more unless it is told to."""


class Reference(NamedTuple):
    """What transformers made of a contestant's prompts."""

    answers: list[Answer]
    rotation: Rotation | None
    rounding: float | None
    """Nats: the largest difference of its first-token log-probabilities from its own in fp64; None if not measured."""


def reference(
    folder: Path, contestant: ModelUnderTest, asked: Sequence[Request], dtype: str, device: str, in_fp64: int
) -> Reference:
    """Let transformers' own ``generate`` answer, prompt by prompt, and read its rotation.

    Args:
        folder: the checkpoint.
        contestant: base, method and length.
        asked: the prompts.
        dtype: of weights and products.
        device: what they are computed on.
        in_fp64: of how many of the first prompts the first token is computed again in fp64.
    """
    import torch

    from longctx_bench.engines.hf.engine import apply_method, load_model

    model: Any = load_model(folder, dtype, device)
    with apply_method(model, contestant, contestant.length), torch.inference_mode():
        rotary = model.base_model.rotary_emb
        turned = None
        if not contestant.base.config["model_type"].endswith("_drope"):
            turned = Rotation(rotary.inv_freq.double().tolist(), float(rotary.attention_scaling))
        answers = [_answer(model, request, sorted(end_ids(folder) | request.stop_ids)) for request in asked]
        # Last, since it changes the loaded weights for good.
        rounding = _rounding(model, asked[:in_fp64], answers)
    return Reference(answers, turned, rounding)


def _answer(model: Any, request: Request, ends: list[int]) -> Answer:
    import torch

    ids = torch.tensor([list(request.input_ids)], device=model.device)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=request.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    steps = [_likeliest(logits[0].float()) for logits in found.logits]
    return Answer(found.sequences[0, ids.shape[1] :].tolist(), steps)


def _rounding(model: Any, asked: Sequence[Request], answers: Sequence[Answer]) -> float | None:
    """Compare first tokens with those of the same weights in fp64; norms and angles stay in fp32, as they are coded."""
    import torch

    if not asked:
        return None
    try:
        model.double()
        differences = []
        for request, answer in zip(asked, answers, strict=False):
            ids = torch.tensor([list(request.input_ids)], device=model.device)
            logits = model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]
            differences.append(first_difference(answer.steps[0], _likeliest(logits)))
        return max(differences)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        # A model that fills the device has no room for twice its size; the certificate is worth having without this.
        if not memory.is_out_of_memory(error):
            raise
        return None


def _likeliest(logits: Any) -> dict[int, float]:
    import torch

    values, tokens = torch.log_softmax(logits, dim=-1).topk(TOP)
    return dict(zip(tokens.tolist(), values.tolist(), strict=True))
