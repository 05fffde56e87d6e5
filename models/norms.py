"""Norms as a GPU runs them fastest: no counter that nothing reads, no other layout."""

from __future__ import annotations

import torch
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


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's, affine and without running statistics; compiled, written out, so that the channels stay last in memory.

    The library's own regards the images as channels of one, which needs them the other way round.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 torch's name
        """`(B, C, H, W)`, each image and channel normalised over H and W."""
        if not torch.compiler.is_dynamo_compiling():
            return super().forward(input)
        values = input.float()
        variance, mean = torch.var_mean(values, (2, 3), correction=0, keepdim=True)
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return ((values - mean) * scale + self.bias[:, None, None]).to(input.dtype)
