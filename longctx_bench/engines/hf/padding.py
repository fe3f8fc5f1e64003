"""Token ids on their way to a model: from the integers of requests to one tensor on a device."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch


def pad_token_ids(rows: Sequence[Sequence[int]], pads: Sequence[int] = ()) -> torch.Tensor:
    """Return ids as ``[rows, longest]`` on the CPU, filled up with zeros on the right.

    Args:
        rows: token ids, of any lengths.
        pads: zeros on the left of each row; none when it is empty.
    """
    starts = pads or [0] * len(rows)
    ids = torch.zeros(len(rows), max(map(sum, zip(starts, map(len, rows), strict=True))), dtype=torch.long)
    for own, start, row in zip(ids, starts, rows, strict=True):
        if row:
            # torch.tensor looks at each integer of a list by itself, which for a batch takes as long as a small model.
            own[start : start + len(row)] = torch.frombuffer(array("q", row), dtype=torch.long)
    return ids


def to_device_async(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return numbers of the CPU on a device, without waiting for what a GPU is doing."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)
