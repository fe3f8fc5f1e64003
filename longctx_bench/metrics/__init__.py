"""Scores: pure functions from a model's text and the references, by name."""

from __future__ import annotations

from longctx_bench.errors import UserError, near_miss
from longctx_bench.metrics.base import Metric
from longctx_bench.metrics.longbench import LONGBENCH_METRICS
from longctx_bench.metrics.loss import LOSS_METRICS
from longctx_bench.metrics.ruler import RULER_METRICS, string_match_all, string_match_part

__all__ = ["METRICS", "Metric", "metric", "string_match_all", "string_match_part"]

METRICS = {measure.name: measure for measure in (*RULER_METRICS, *LONGBENCH_METRICS, *LOSS_METRICS)}


def metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        UserError: there is no such metric.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'{near_miss(name, METRICS)}")
    return METRICS[name]
