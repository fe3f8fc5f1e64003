"""Scores: pure functions from a model's text and the references, by name."""

from __future__ import annotations

from longctx_bench.core.plugin_registry import PluginRegistry
from longctx_bench.metrics.base import Metric, as_metric
from longctx_bench.metrics.longbench import LONGBENCH_METRICS
from longctx_bench.metrics.loss import LOSS_METRICS
from longctx_bench.metrics.ruler import RULER_METRICS, string_match_all, string_match_part

__all__ = ["METRICS", "Metric", "as_metric", "get_metric", "shipped_metric", "string_match_all", "string_match_part"]

METRICS: PluginRegistry[Metric] = PluginRegistry(
    "metric", {measure.name: measure for measure in (*RULER_METRICS, *LONGBENCH_METRICS, *LOSS_METRICS)}
)
"""Metrics, and plain functions from text and references to a score, by name."""


def get_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        UserError: there is no such metric, or it is no function.
    """
    return as_metric(METRICS[name], name)


def shipped_metric(name: str) -> Metric | None:
    """Return a metric of this package; None where it has none of that name. Imports nothing, for readers of results."""
    known = METRICS.shipped.get(name)
    return known if isinstance(known, Metric) else None
