"""Benchmarks: generators of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longctx_bench.core.plugin_registry import PluginRegistry

if TYPE_CHECKING:
    from longctx_bench.benchmarks.base import Benchmark

_HERE = "longctx_bench.benchmarks"

BENCHMARKS: PluginRegistry[type[Benchmark]] = PluginRegistry(
    "benchmark",
    {
        "lm-eval": f"{_HERE}.lm_eval_task:LMEval",
        "longbench": f"{_HERE}.longbench.benchmark:LongBench",
        "needle-in-a-haystack": f"{_HERE}.niah:NeedleInAHaystack",
        "perplexity": f"{_HERE}.perplexity:Perplexity",
        "ruler-common-words": f"{_HERE}.ruler.aggregation:CommonWords",
        "ruler-frequent-words": f"{_HERE}.ruler.aggregation:FrequentWords",
        "ruler-question-answering": f"{_HERE}.ruler.qa:QuestionAnswering",
        "ruler-variable-tracking": f"{_HERE}.ruler.variable_tracking:VariableTracking",
        "ruler-upstream-common-words": f"{_HERE}.ruler_upstream.aggregation_and_qa:UpstreamCommonWords",
        "ruler-upstream-frequent-words": f"{_HERE}.ruler_upstream.aggregation_and_qa:UpstreamFrequentWords",
        "ruler-upstream-niah": f"{_HERE}.ruler_upstream.niah_and_tracking:UpstreamNeedleInAHaystack",
        "ruler-upstream-question-answering": f"{_HERE}.ruler_upstream.aggregation_and_qa:UpstreamQuestionAnswering",
        "ruler-upstream-variable-tracking": f"{_HERE}.ruler_upstream.niah_and_tracking:UpstreamVariableTracking",
    },
)
"""Benchmark classes by id; a task YAML names one under ``use``."""
