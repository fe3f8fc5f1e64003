"""Chat templates are programs that come with a model: the same text as transformers gives, and limits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_models import make_model

from longctx_bench.benchmarks.chat_templates import ChatTemplate
from longctx_bench.core.errors import UserError

TEMPLATES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}{{ '<a>' if add_generation_prompt }}",
    "{{ bos_token }}{%- for m in messages -%}\n  [{{ m['content'] | tojson }}]{{ eos_token }}\n{%- endfor %}",
    "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{{ n.x }}{{ m.content }}{% endfor %}",
)
QUESTION = [{"role": "user", "content": " What is \u2028 this, \U0001f600 and\r\nthat? \\n "}]
ENDLESS = "{% for number in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.3 s of CPU time for a template in place of 5: what never ends need not be waited for."""
    monkeypatch.setattr("longctx_bench.benchmarks.chat_templates._CPU_SECONDS", 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_text_is_that_of_transformers(plain_tokenizer: Any, template: str) -> None:
    plain_tokenizer.chat_template = template
    ours = ChatTemplate(plain_tokenizer)
    ways: list[dict[str, Any]] = [{"add_generation_prompt": True}, {"add_generation_prompt": False}]
    if "tojson" not in template:
        ways.append({"add_generation_prompt": False, "continue_final_message": True})
    answered = [*QUESTION, {"role": "assistant", "content": "a"}]
    for messages in (QUESTION, answered, [{"role": "user", "content": "x " * 500_000}]):
        for way in ways:
            expected = plain_tokenizer.apply_chat_template(messages, tokenize=False, **way)
            assert ours.render(messages, **way) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("short_limit")
@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'x' * 10 ** 11 }}",
        "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ 'x' * 9000000 }}",
        "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
        "{% for",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_does_harm_is_one_line_within_seconds(plain_tokenizer: Any, template: str) -> None:
    plain_tokenizer.chat_template = template
    rendering = ChatTemplate(plain_tokenizer)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(UserError, match="--chat-template: .* cannot be rendered"):
            rendering.render(QUESTION)
        assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.usefixtures("short_limit")
def test_a_run_with_such_a_model_ends_with_exit_code_2(tmp_path: Path, essays: Path, call: Any) -> None:
    for name, template in (("endless", ENDLESS), ("forbidden", "{{ ''.__class__.__subclasses__() }}")):
        folder = make_model(tmp_path / name)
        (folder / "chat_template.jinja").write_text(template)
        code, _, error = call(
            "run", "--model", folder, "--tasks", "niah", "--length", "512", "--limit", "1", "--engine", "echo",
            "--chat-template", "--data", f"ruler-essays={essays}", "--out", tmp_path / "results",
        )  # fmt: skip
        assert code == 2
        assert "Traceback" not in error
        assert "cannot be rendered" in error
