"""The transformers reference of a parity certificate: plain ``generate``, and its own rounding error."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from longctx_bench.analysis.parity.output_comparison import Generation, Rotation, first_difference
from longctx_bench.core.types import Request
from longctx_bench.engines import memory
from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.models.metadata import eos_token_ids
from longctx_bench.models.variant import ModelUnderTest

TOP_LOGPROBS = 20
"""Log-probabilities kept per step: vLLM's default maximum (``max_logprobs``)."""


class Reference(NamedTuple):
    """The outputs of transformers for a model's prompts."""

    answers: list[Generation]
    rotation: Rotation | None
    """With which the first prompt is read."""
    rounding: float | None
    """Nats: the largest difference of first-token log-probabilities from those in fp64; None if not measured."""


def generate_reference(
    folder: Path, model_under_test: ModelUnderTest, requests: Sequence[Request], dtype: str, device: str, in_fp64: int
) -> Reference:
    """Run transformers' own ``generate``, one prompt at a time, and read its rotary frequencies.

    Args:
        folder: the checkpoint.
        model_under_test: base, method and length.
        requests: the prompts.
        dtype: of weights and products.
        device: what they are computed on.
        in_fp64: number of prompts whose first token is computed again in fp64.
    """
    import torch

    from longctx_bench.engines.hf.engine import load_model

    model: Any = load_model(folder, dtype, device)
    eos = eos_token_ids(folder)
    rotation: Rotation | None = None
    answers: list[Generation] = []
    with torch.inference_mode():
        for request in requests:
            with _applied(model, model_under_test, request):
                if not answers and not model_under_test.base.config["model_type"].endswith("_drope"):
                    rotary = model.base_model.rotary_emb
                    rotation = Rotation(rotary.inv_freq.double().tolist(), float(rotary.attention_scaling))
                answers.append(_generate(model, request, sorted(eos | request.stop_ids)))
        # Last, because it converts the loaded weights.
        rounding = _rounding_error(model, model_under_test, requests[:in_fp64], answers)
    return Reference(answers, rotation, rounding)


def _applied(model: Any, model_under_test: ModelUnderTest, request: Request) -> AbstractContextManager[None]:
    from longctx_bench.engines.hf.engine import apply_method

    length = num_total_tokens(request) if model_under_test.method.per_prompt else model_under_test.length
    return apply_method(model, model_under_test, length)


def _generate(model: Any, request: Request, eos_token_ids: list[int]) -> Generation:
    import torch

    ids = torch.tensor([list(request.input_ids)], device=model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=request.max_new_tokens,
        eos_token_id=eos_token_ids,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    steps = [_top_logprobs(logits[0].float()) for logits in output.logits]
    return Generation(output.sequences[0, ids.shape[1] :].tolist(), steps)


def _rounding_error(
    model: Any, model_under_test: ModelUnderTest, requests: Sequence[Request], answers: Sequence[Generation]
) -> float | None:
    """Compare first tokens with those of the same weights in fp64; norms and rotary angles stay in fp32, as coded."""
    import torch

    if not requests:
        return None
    try:
        model.double()
        differences = []
        for request, answer in zip(requests, answers, strict=False):
            ids = torch.tensor([list(request.input_ids)], device=model.device)
            with _applied(model, model_under_test, request):
                logits = model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]
            differences.append(first_difference(answer.steps[0], _top_logprobs(logits)))
        return max(differences)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        # A model that fills the device does not fit in fp64; the certificate is still useful without this number.
        if not memory.is_out_of_memory(error):
            raise
        return None


def _top_logprobs(logits: Any) -> dict[int, float]:
    import torch

    values, tokens = torch.log_softmax(logits, dim=-1).topk(TOP_LOGPROBS)
    return dict(zip(tokens.tolist(), values.tolist(), strict=True))
