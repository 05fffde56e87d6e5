"""Batch norm without a counter, and what the encoder with it gives a GPU to do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import mobilenet_v2

from models.depth_net import MobileNetEncoder
from models.norms import BatchNorm2d


class Operations(TorchDispatchMode):
    """Counts them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_it_is_torchs_but_for_the_count() -> None:
    torch.manual_seed(0)
    own, torchs = BatchNorm2d(3), nn.BatchNorm2d(3)
    image = torch.rand(4, 3, 5, 5)
    for training in (True, True, False):
        own.train(training)
        torchs.train(training)
        assert torch.equal(own(image), torchs(image))
    theirs = torchs.state_dict()
    assert int(theirs.pop("num_batches_tracked")) == 2
    found = own.state_dict()
    assert int(found.pop("num_batches_tracked")) == 0
    assert all(torch.equal(found[name], value) for name, value in theirs.items())
    own.load_state_dict(torchs.state_dict())


def test_the_encoder_is_torchvisions_with_fewer_kernels() -> None:
    torch.manual_seed(0)
    public = mobilenet_v2(weights=None).features
    encoder = MobileNetEncoder()
    encoder.features.load_state_dict(public.state_dict())
    image = torch.rand(2, 3, 32, 32)
    counted = {}
    for name, features in (("own", encoder.features), ("public", public)):
        with Operations() as seen:
            features(image).square().sum().backward()
        counted[name] = seen.counts
    for mine, theirs in zip(encoder.features.parameters(), public.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in public.modules())
    assert counted["public"]["add_"] - counted["own"]["add_"] == layers
    assert counted["own"]["clone"] == 0 < counted["public"]["clone"]
