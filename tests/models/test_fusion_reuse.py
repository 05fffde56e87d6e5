"""What is known of s_ref beforehand gives the numbers of the whole forward pass."""

from __future__ import annotations

import pytest
import torch

from models.canonical import HeadLayer
from models.fusion import FusionNetwork
from tests.models.test_networks import FLOW, NET


@pytest.mark.parametrize("with_head", [True, False])
def test_a_reference_looked_at_once_fuses_as_the_whole_forward(with_head: bool):
    torch.manual_seed(0)
    network = FusionNetwork(NET, FLOW, with_head)
    torch.nn.init.normal_(network.decoder.out.weight, std=0.2)  # at the start the decoder corrects nothing
    head = HeadLayer(torch.rand(2, 3, 48, 48), torch.rand(2, 1, 48, 48))
    reference, driving = torch.rand(1, 3, 48, 48), torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        network(head, driving, driving.flip(0))  # the batch norms get statistics of their own
        network.eval()
        whole = network(head, reference.expand(2, -1, -1, -1), driving)
        parts = network.fuse(head, network.look(reference).repeat(2), driving)
    torch.testing.assert_close(parts.image, whole.image, atol=1e-5, rtol=0)
    for part, expected in zip([*parts.maps, *parts.regions], [*whole.maps, *whole.regions], strict=True):
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)
    assert whole.image.std() > 0.01
