"""Token ids between host and device: padding, and copies that do not wait for the device."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch


def pad_token_ids(rows: Sequence[Sequence[int]], left_pads: Sequence[int] = ()) -> torch.Tensor:
    """Return token ids as ``[rows, longest]`` on the CPU, padded with zeros on the right.

    Args:
        rows: token ids, of any lengths.
        left_pads: zeros on the left of each row; none when empty.
    """
    starts = left_pads or [0] * len(rows)
    ids = torch.zeros(len(rows), max(map(sum, zip(starts, map(len, rows), strict=True))), dtype=torch.long)
    for target, start, row in zip(ids, starts, rows, strict=True):
        if row:
            # torch.tensor converts a list integer by integer, which for a batch takes as long as a small model.
            target[start : start + len(row)] = torch.frombuffer(array("q", row), dtype=torch.long)
    return ids


def to_device_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device without waiting for the kernels that are queued on a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class AsyncTokens:
    """Token ids on their way from the device; reading them does not wait for kernels that were queued after them."""

    def __init__(self, tokens: torch.Tensor) -> None:
        """Queue the copy of ``[rows, tokens]``; the tensor may be overwritten afterwards."""
        self._event: torch.cuda.Event | None = None
        if not tokens.is_cuda:
            self._tokens = tokens.clone()
            return
        with torch.cuda.device(tokens.device):
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def tolist(self) -> list[list[int]]:
        """Wait for the copy and return the ids of each row."""
        if self._event is not None:
            self._event.synchronize()
        return self._tokens.tolist()
