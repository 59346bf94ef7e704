"""Mean loss and accuracy of an epoch, summed on the device."""

from __future__ import annotations

import torch
from torch import Tensor


class EpochMeter:
    """Sums of loss and hits over an epoch; the host does not wait for them until `read`."""

    def __init__(self, device: torch.device) -> None:
        # loss, top-1 hits, top-5 hits, images; float64 so that 100,000 images lose nothing.
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    def reset(self) -> None:
        """Set the sums to 0, in the same memory."""
        self.sums.zero_()

    def add(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add one batch: its summed loss, its logits (n, k) and its labels.

        `labels` are (n,) class numbers, or (n, k) soft targets, whose positive entries all count.
        """
        top = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices  # (n, 5)
        hits = labels.gather(1, top) > 0 if labels.dim() == 2 else top == labels[:, None]
        images = torch.full((), len(logits), dtype=torch.float64, device=logits.device)
        counts = (loss_sum.detach(), hits[:, 0].sum(), hits.any(dim=1).sum(), images)
        self.sums += torch.stack([count.double() for count in counts])

    def read(self) -> tuple[float, float, float, int]:
        """Return mean loss, top-1, top-5 and number of images, over all data-parallel workers."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.sums)
        loss, top1, top5, images = self.sums.tolist()
        count = max(images, 1.0)
        return loss / count, top1 / count, top5 / count, int(images)
