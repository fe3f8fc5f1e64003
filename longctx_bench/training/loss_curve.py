"""The loss curve of a training run: loss.csv and loss.png."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from longctx_bench.core.io import atomic_write, write_text

COLUMNS = ("step", "tokens", "lr", "train_loss", "validation_loss", "tokens_per_second")


def write_loss_csv(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``loss.csv``. Losses are mean nats per token."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "loss.csv", text.getvalue())


def plot_loss_curve(out: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Write ``loss.png``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for column, style in (("train_loss", "-"), ("validation_loss", "o-")):
        points = [(row["tokens"] / 1e6, row[column]) for row in rows if row.get(column) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=column.replace("_", " "), linewidth=1, markersize=3)
    axes.set(title=title, xlabel="tokens (millions)", ylabel="nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(out / "loss.png") as temporary:
        figure.savefig(temporary, dpi=120)
