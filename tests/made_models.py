"""A small tokenizer and a random model around it, for fixtures and for tests that want another shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make_tokenizer(vocabulary: int = 600, bos: bool = False) -> Any:
    """Train a byte-level BPE with split digits on RULER's own wording and words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from longctx_bench.benchmarks import vocabulary as words
    from longctx_bench.benchmarks import wording

    texts = [
        wording.NIAH_PROMPT,
        wording.NIAH_ANSWER,
        wording.NOISE,
        wording.NEEDLE,
        wording.VT_PROMPT,
        wording.QA_PROMPT,
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
