"""Batch norm without a counter that nothing reads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, but `num_batches_tracked` stays as it is.

    The count only matters to a norm without momentum, yet it costs a kernel a layer: on a GPU that replays a recorded
    step, as much as the norm itself. Files of weights have it and may be read by either.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 torch's name
        """`(B, C, H, W)`, normalised over all but C; in training the running statistics follow."""
        assert self.momentum is not None
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(input, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)
