"""Metrics: pure functions of a generation and its references, by name."""

from __future__ import annotations

from longctx_bench.core.plugin_registry import PluginRegistry
from longctx_bench.metrics.base import Metric, as_metric
from longctx_bench.metrics.longbench import LONGBENCH_METRICS
from longctx_bench.metrics.loss import LOSS_METRICS
from longctx_bench.metrics.ruler import RULER_METRICS, string_match_all, string_match_part

__all__ = ["METRICS", "Metric", "as_metric", "get_metric", "shipped_metric", "string_match_all", "string_match_part"]

METRICS: PluginRegistry[Metric] = PluginRegistry(
    "metric", {metric.name: metric for metric in (*RULER_METRICS, *LONGBENCH_METRICS, *LOSS_METRICS)}
)
"""Metrics by name; plug-ins may also register plain functions of text and references."""


def get_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        UserError: there is no such metric, or it is not a function.
    """
    return as_metric(METRICS[name], name)


def shipped_metric(name: str) -> Metric | None:
    """Return a built-in metric, or None if there is none of that name. Imports nothing; used by reports."""
    metric = METRICS.shipped.get(name)
    return metric if isinstance(metric, Metric) else None
