"""A light tokenizer that reads only ``tokenizer.json``, for files that transformers would use unchanged.

Generating prompts needs a tokenizer but no model, and importing transformers takes longer than thousands of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CLASSES = frozenset({"TokenizersBackend", "PreTrainedTokenizerFast"})
"""``tokenizer_class`` values for which transformers uses the file as it is; other classes build their own tokenizer."""
_MODELS = frozenset({"llama", "llama_drope", "smollm3"})
"""Model types for which transformers honours ``tokenizer_class``; for some others it overrides it."""
_LEGACY = ("special_tokens_map.json", "added_tokens.json")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_HARMLESS = frozenset({
    *("backend", "chat_template", "clean_up_tokenization_spaces", "is_local", "local_files_only", "model_max_length"),
    *("padding_side", "tokenizer_class", *_NAMED),
})  # fmt: skip
"""Entries of ``tokenizer_config.json`` that do not affect BPE encoding or decoding."""
_MAX_VOCAB_SIZE = 100_000
"""For larger vocabularies transformers checks for, and fixes, a defect of Mistral's files."""


class LightTokenizer:
    """Encodes and decodes like transformers' tokenizer of the folder; loads that one for anything else."""

    split_special_tokens = False

    def __init__(self, backend: Tokenizer, named: Mapping[str, str], load_full: Callable[[], Any]) -> None:
        """Wrap the tokenizer of a ``tokenizer.json``.

        Args:
            backend: the file's tokenizer.
            named: special tokens by name in ``tokenizer_config.json``.
            load_full: loads transformers' tokenizer of the folder.
        """
        self.backend_tokenizer = backend
        self.eos_token_id = backend.token_to_id(named.get("eos_token", ""))
        self.sep_token_id = backend.token_to_id(named.get("sep_token", ""))
        self._load_full = load_full

    @classmethod
    def from_folder(cls, folder: Path, load_full: Callable[[Path], Any]) -> LightTokenizer | None:
        """Read a checkpoint folder's tokenizer; None if transformers would not use its file unchanged."""
        from tokenizers import Tokenizer

        try:
            settings, model = (
                json.loads((folder / name).read_text(encoding="utf-8"))
                for name in ("tokenizer_config.json", "config.json")
            )
            named = {name: settings[name] for name in _NAMED if settings.get(name) is not None}
            if (
                settings["tokenizer_class"] not in _CLASSES
                or model["model_type"] not in _MODELS
                or not _HARMLESS.issuperset(settings)
                or not all(isinstance(token, str) for token in named.values())
                or any((folder / name).exists() for name in _LEGACY)
            ):
                return None
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:  # noqa: BLE001 - transformers reports what is wrong with the files
            return None
        added_tokens = {token.content: token for token in backend.get_added_tokens_decoder().values()}
        if (
            type(backend.model).__name__ != "BPE"
            or backend.get_vocab_size() > _MAX_VOCAB_SIZE
            or backend.post_processor is None
            or backend.truncation is not None
            or backend.padding is not None
            or not all(token in added_tokens and _plain(added_tokens[token]) for token in named.values())
        ):
            return None
        return cls(backend, named, lambda: load_full(folder))

    @cached_property
    def _full(self) -> Any:
        return self._load_full()

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling ask for special methods, which must not load anything.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._full, name)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __call__(
        self, text: str | list[str], add_special_tokens: bool = True, verbose: bool = True, **others: Any
    ) -> Any:
        """Return ``{"input_ids": ...}`` for one or several texts; other options go to transformers' tokenizer."""
        if others.get("return_attention_mask") is not False or any(others.values()):
            return self._full(text, add_special_tokens=add_special_tokens, verbose=verbose, **others)
        if isinstance(text, str):
            return {"input_ids": self.encode(text, add_special_tokens)}
        # One by one: most are words, for which thread overhead dominates.
        return {"input_ids": [self.encode(one, add_special_tokens) for one in text]}

    def encode(self, text: str, add_special_tokens: bool = True, **others: Any) -> list[int]:
        """Return a text's token ids."""
        if others:
            return list(self._full.encode(text, add_special_tokens=add_special_tokens, **others))
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **others: Any) -> str:
        """Return the text of token ids."""
        if others:
            return str(self._full.decode(ids, skip_special_tokens=skip_special_tokens, **others))
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)


def _plain(token: Any) -> bool:
    """Whether a special token is in the file as transformers would add it."""
    return bool(token.special) and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
