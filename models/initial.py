"""What F_D and F_P start from where the published weights are at hand (Sec. 4.2): ImageNet's MobileNetV2, HopeNet."""

from __future__ import annotations

import torch

from models.depth_net import DepthNetwork, MobileNetEncoder
from models.hopenet import load_hopenet
from models.pose_net import PoseNetwork
from models.pretrained import WeightsFormatError, WeightsMissingError, load_registered


def start_depth(network: DepthNetwork, initial: str) -> str:
    """Give F_D's encoder ImageNet's weights, as setting `geometry.depth_net.initial` says.

    Args:
        network: F_D, changed in place.
        initial: `random`, `pretrained`, or `if_present`: pretrained where the file is.

    Returns:
        What was done: `random` or `imagenet`.

    Raises:
        WeightsMissingError: `pretrained`, and the file is missing.
        WeightsFormatError: It is there and damaged, or another.
    """
    if initial == "random":
        return "random"
    assert isinstance(network.encoder, MobileNetEncoder)
    try:
        public = load_registered("mobilenet_v2")
    except WeightsMissingError as error:
        if initial == "pretrained" or isinstance(error, WeightsFormatError):
            raise
        return "random"
    own = {key.removeprefix("features."): value for key, value in public.items() if key.startswith("features.")}
    network.encoder.features.load_state_dict(own)
    return "imagenet"


@torch.no_grad()
def start_pose(network: PoseNetwork, initial: str) -> str:
    """Give F_P HopeNet's weights, as setting `geometry.pose_net.initial` says.

    HopeNet's positive pitch looks up and ours down: the bins of pitch are mirrored (bin i stands for 3 i - 99 degrees,
    so it becomes bin 66 - i). The other order of its rotations is left to the training; `models.hopenet.HopeNet`
    computes it exactly.

    Args:
        network: F_P on ResNet-50, changed in place; its translation head stays as it is.
        initial: As for `start_depth`.

    Returns:
        What was done: `random` or `hopenet`.

    Raises:
        WeightsMissingError: `pretrained`, and the file is missing.
        WeightsFormatError: It is there and has another format.
    """
    if initial == "random":
        return "random"
    try:
        public = load_hopenet()
    except WeightsMissingError as error:
        if initial == "pretrained" or isinstance(error, WeightsFormatError):
            raise
        return "random"
    own = {key: value for key, value in public.state_dict().items() if not key.startswith(("fc_translation", "layout"))}
    network.load_state_dict(own, strict=False)
    for values in (network.fc_pitch.weight, network.fc_pitch.bias):
        values[1:] = values[1:].flip(0)
    return "hopenet"
