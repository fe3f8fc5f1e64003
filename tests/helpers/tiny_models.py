"""A small tokenizer and a random model around it, for fixtures and for tests that want another shape."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any


def make_tokenizer(vocabulary: int = 600, bos: bool = False) -> Any:
    """Train a byte-level BPE with split digits on RULER's own wording and words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from longctx_bench.benchmarks.ruler import prompt_templates
    from longctx_bench.benchmarks.ruler import word_lists as words

    texts = [
        prompt_templates.NIAH_PROMPT,
        prompt_templates.NIAH_ANSWER,
        prompt_templates.NOISE,
        prompt_templates.NEEDLE,
        prompt_templates.VT_PROMPT,
        prompt_templates.QA_PROMPT,
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts * 20, *words.all_words()], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>",
    )


def make_model(folder: Path, **config: Any) -> Path:
    """Save a random Llama of 50 k parameters with its tokenizer; its context is 256 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    shape = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    LlamaForCausalLM(
        LlamaConfig(**{**shape, **config}, vocab_size=len(tokenizer), eos_token_id=1, bos_token_id=0, pad_token_id=1)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@lru_cache
def _tokenizer(bos: bool) -> Any:
    return make_tokenizer(bos=bos)


def make_published(folder: Path, attention_type: str | None = None, shard: str = "1GB", bos: bool = False,
                   dtype: str = "bfloat16", **config: Any) -> Path:  # fmt: skip
    """Save a small random checkpoint as the DroPE paper's are published: written by transformers 4, weights in halves.

    Args:
        attention_type: Sakana AI's, for a DroPE checkpoint, whose config names remote code; None for a Llama.
        shard: the most that one file of weights holds.
        bos: the tokenizer begins every text with BOS, as Llama 2's does.
        dtype: of the weights.
        config: entries of the config, its shape above all.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from longctx_bench.methods.modeling_drope import LlamaDropeConfig, LlamaDropeForCausalLM

    tokenizer = _tokenizer(bos)
    entries = {"initializer_range": 0.2, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, **config}
    torch.manual_seed(0)
    model: Any
    if attention_type is None:
        model = LlamaForCausalLM(LlamaConfig(**entries))
    else:
        model = LlamaDropeForCausalLM(LlamaDropeConfig(attention_type=attention_type, **entries))
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "dtype"):
        written.pop(name, None)
    written |= {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": dtype, "transformers_version": "4.56.0"}
    if attention_type is not None:
        written["architectures"] = ["DroPELlamaForCausalLM"]
        written["auto_map"] = {
            "AutoConfig": "drope.DroPELlamaConfig",
            "AutoModelForCausalLM": "drope.DroPELlamaForCausalLM",
        }
        # What a published repository's code would do here, was it ever run.
        (folder / "drope.py").write_text("raise SystemExit('remote code was run')\n")
    (folder / "config.json").write_text(json.dumps(written))
    return folder
