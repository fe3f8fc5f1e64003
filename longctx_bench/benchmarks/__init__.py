"""Benchmarks: from a task spec to examples, without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longctx_bench.extensions import Extensions

if TYPE_CHECKING:
    from longctx_bench.benchmarks.base import Benchmark

_HERE = "longctx_bench.benchmarks"

BENCHMARKS: Extensions[type[Benchmark]] = Extensions(
    "benchmark",
    {
        "lm-eval": f"{_HERE}.lm_eval:LMEval",
        "longbench": f"{_HERE}.longbench:LongBench",
        "needle-in-a-haystack": f"{_HERE}.needles:Needles",
        "perplexity": f"{_HERE}.perplexity:Perplexity",
        "ruler-common-words": f"{_HERE}.counting:CommonWords",
        "ruler-frequent-words": f"{_HERE}.counting:FrequentWords",
        "ruler-question-answering": f"{_HERE}.qa:QuestionAnswering",
        "ruler-variable-tracking": f"{_HERE}.tracking:VariableTracking",
        "ruler-upstream-common-words": f"{_HERE}.ruler_paper_lists:PaperCommonWords",
        "ruler-upstream-frequent-words": f"{_HERE}.ruler_paper_lists:PaperFrequentWords",
        "ruler-upstream-niah": f"{_HERE}.ruler_paper_hidden:PaperNeedles",
        "ruler-upstream-question-answering": f"{_HERE}.ruler_paper_lists:PaperQuestions",
        "ruler-upstream-variable-tracking": f"{_HERE}.ruler_paper_hidden:PaperTracking",
    },
)
"""Classes of benchmarks by id; a task's YAML names one under ``use``."""
