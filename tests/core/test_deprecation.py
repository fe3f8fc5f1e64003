"""Plug-ins written for the old names keep working, with a DeprecationWarning."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from longctx_bench.benchmarks.base import Benchmark
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rope_scaling import PI
from longctx_bench.metrics import Metric


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("methods.base", "Base", "BaseModelInfo"),
        ("methods.base", "Tuning", "AppliedScalar"),
        ("methods.attention_override", "attending", "override_attention"),
        ("benchmarks.base", "DoesNotFit", "ContextTooShort"),
        ("core.errors", "DoesNotFit", "ContextTooShort"),
        ("core.errors", "near_miss", "did_you_mean"),
    ],
)
def test_old_names_can_be_imported(module: str, old: str, new: str) -> None:
    loaded = importlib.import_module(f"longctx_bench.{module}")
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(loaded, old) is getattr(loaded, new)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = loaded.no_such_name


def test_a_method_may_override_old_names() -> None:
    calls: list[str] = []

    with pytest.warns(DeprecationWarning, match=r"Old\.applied.*patch"):

        class Old(NoPE):
            @contextmanager
            def applied(self, model: Any, base: BaseModelInfo, length: int) -> Iterator[None]:
                calls.append("enter")
                with super().applied(model, base, length):  # type: ignore[misc]
                    yield
                calls.append("exit")

    with pytest.warns(DeprecationWarning, match=r"Tuned\.tuned.*with_scalar"):

        class Tuned(PI):
            def tuned(self, value: float) -> Tuned:
                return self.model_copy(update={"factor": value})

    base = BaseModelInfo("x", 64, {})
    with Old().patch(None, base, 64):  # type: ignore[arg-type]
        assert calls == ["enter"]
    assert calls == ["enter", "exit"]
    assert Tuned().with_scalar(2.0).factor == 2.0
    assert Old().calibrated({}).temperature is None  # type: ignore[attr-defined]
    assert "model_patch" in type("Patched", (PI,), {"applied": Old.__dict__["applied"]}).capabilities
    with pytest.warns(DeprecationWarning, match="training_context"):
        assert base.original_length == 64


def test_a_benchmark_may_override_answer() -> None:
    with pytest.warns(DeprecationWarning, match="expected_completion"):

        class Old(Benchmark):
            def answer(self, references: Any) -> str:
                return f"It is {references[0]}"

            def examples(self, *arguments: Any) -> Any:
                raise NotImplementedError

    assert Old().expected_completion(["a"]) == "It is a"


def test_a_metric_takes_old_arguments() -> None:
    with pytest.warns(DeprecationWarning, match="is_final"):
        metric = Metric("m", lambda text, references, classes=(): 1.0, settled=lambda text, references: True)
    assert metric.is_final("", ())
    with pytest.warns(DeprecationWarning, match="reference_implementation"):
        assert Metric("m", metric.score, reproduces="theirs").reference_implementation == "theirs"
