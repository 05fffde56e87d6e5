"""F_P with HopeNet's public weights (Sec. 4.2, [33]): the checkpoint's names, its angles in our convention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.config import Camera, PoseNet
from models.geometry import rotation_from_euler
from models.pose_net import BIN_DEG, BINS, FIRST_DEG, HeadPose, PoseNetwork
from models.pretrained import WeightsFormatError, find_weights

INPUT_PX = 224
_TRUNK = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
"""Place of torchvision's ResNet blocks in `PoseNetwork.trunk` (2, 3 and 8 hold no weights)."""
_HEADS = ("fc_yaw", "fc_pitch", "fc_roll")
_IGNORED = "fc_finetune."
"""A layer that the public network has and never uses."""
_OWN = ("fc_translation", "layout")
"""Layers of F_P that the public network has not."""
_WANTED = "HopeNet's public format is a state dict with conv1, bn1, layer1 to layer4, fc_yaw, fc_pitch and fc_roll"


def angles_from_hopenet(angles_deg: Tensor) -> Tensor:
    """HopeNet's angles in this project's convention.

    Source: the axes that the public code draws: there R = Rx(-pitch) Ry(yaw) Rz(roll), so positive pitch looks up; here
    R = Rz Ry Rx (`rotation_from_euler`), and positive pitch looks down. Yaw and roll have the same sign. The same
    rotation is written in the other order.

    Args:
        angles_deg: HopeNet's (yaw, pitch, roll), `(B, 3)`, degrees, |yaw| < 90.

    Returns:
        (yaw, pitch, roll), `(B, 3)`, degrees.
    """
    yaw, pitch, roll = angles_deg.unbind(-1)
    zero = torch.zeros_like(yaw)
    turn = rotation_from_euler(zero, -pitch, zero) @ rotation_from_euler(yaw, zero, zero)
    turn = turn @ rotation_from_euler(zero, zero, roll)
    angles = (
        torch.asin((-turn[:, 2, 0]).clamp(-1 + 1e-7, 1 - 1e-7)),
        torch.atan2(turn[:, 2, 1], turn[:, 2, 2]),
        torch.atan2(turn[:, 1, 0], turn[:, 0, 0]),
    )
    return torch.rad2deg(torch.stack(angles, dim=-1))


class HopeNet(PoseNetwork):
    """F_P whose trunk and angle heads are HopeNet's; the translation head is F_P's own and starts at zero."""

    def __init__(self, camera: Camera | None = None) -> None:
        """Build the network, untrained.

        Args:
            camera: Its bounds on angles and translation; None: no bound on the angles, and no translation.
        """
        # The base class keeps the camera for its own `forward` alone, which is replaced here.
        super().__init__(PoseNet(backbone="resnet50", initial="random", input_px=INPUT_PX), camera)  # type: ignore[arg-type]

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if image.shape[-2:] != (INPUT_PX, INPUT_PX):
            image = torch.nn.functional.interpolate(
                image, (INPUT_PX, INPUT_PX), mode="bilinear", align_corners=False, antialias=True
            )
        return self.features(self.normal(image))

    def public_angles_deg(self, image: Tensor) -> Tensor:
        """The angles as the public code computes and prints them.

        Source: sum(softmax * index) * 3 - 99 over 66 bins. The public code shrinks the shorter side to 224 px with
        Pillow's bilinear filter and cuts the middle out; a square picture of another size is resized alike here.

        Args:
            image: A loose crop of the face with its background, `(B, 3, H, W)`, square, RGB in [0, 1].

        Returns:
            (yaw, pitch, roll) in HopeNet's convention, `(B, 3)`, degrees; see `angles_from_hopenet`.
        """
        return self._expected(self._features(image)[0])

    def _expected(self, feature: Tensor) -> Tensor:
        index = torch.arange(BINS, dtype=torch.float32, device=feature.device)
        logits = torch.stack([self.fc_yaw(feature), self.fc_pitch(feature), self.fc_roll(feature)], dim=1).float()
        return (logits.softmax(-1) * index).sum(-1) * BIN_DEG + FIRST_DEG

    def predict(self, image: Tensor) -> tuple[HeadPose, Tensor | None]:
        """Pose of heads in this project's convention.

        Args:
            image: As for `public_angles_deg`.

        Returns:
            Angles, bounded by the camera's limit as in F_P, and the translation (zero without a camera); no logits,
            since the bins are of HopeNet's angles.
        """
        feature, placed = self._features(image)
        angles = angles_from_hopenet(self._expected(feature))
        shift = self.fc_translation(placed).float()
        camera: Camera | None = self.camera
        if camera is None:
            return HeadPose(angles, torch.zeros_like(shift)), None
        angles = camera.max_angle_deg * torch.tanh(angles / camera.max_angle_deg)
        return HeadPose(angles, camera.max_translation_m * torch.tanh(shift)), None


def _read(path: Path) -> Mapping[str, Tensor]:
    """The file's state dict; nothing in it is run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may fail in any way
        first = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise WeightsFormatError(f"{path} cannot be read as a file of tensors ({first}); {_WANTED}") from None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        inside = ""
        if isinstance(content, Mapping):
            inside = f" with the keys {', '.join(list(map(str, content))[:5])}: save the state dict inside it alone"
        raise WeightsFormatError(f"{path} holds a {type(content).__name__}{inside}; {_WANTED}")
    return content


def _own_names(path: Path, public: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Public names -> those of `PoseNetwork`."""
    if public and all(key.startswith("module.") for key in public):
        raise WeightsFormatError(
            f"every key of {path} starts with 'module.': it was saved from DataParallel. Save it again without: "
            "torch.save({key.removeprefix('module.'): value for key, value in state.items()}, FILE)"
        )
    own = {}
    strange = []
    for key, value in public.items():
        block, _, rest = key.partition(".")
        if key.startswith(_IGNORED):
            continue
        if block in _TRUNK:
            own[f"trunk.{_TRUNK[block]}.{rest}"] = value
        elif block in _HEADS:
            own[key] = value
        else:
            strange.append(key)
    if strange:
        raise WeightsFormatError(f"{path} has keys that HopeNet has not: {_listed(strange)}; {_WANTED}")
    return own


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _public_name(own: str) -> str:
    head, _, rest = own.partition(".")
    if head != "trunk":
        return own
    place, _, rest = rest.partition(".")
    return next(name for name, index in _TRUNK.items() if index == int(place)) + f".{rest}"


def load_hopenet(path: Path | None = None, camera: Camera | None = None) -> HopeNet:
    """HopeNet from its public checkpoint.

    Args:
        path: The file; None: its own name in `weights_folder()`.
        camera: As for `HopeNet`.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        WeightsMissingError: The file is not there.
        WeightsFormatError: It is another format; the text says what is wrong with it.
    """
    file = find_weights("hopenet", path)
    network = HopeNet(camera)
    own = _own_names(file, _read(file))
    expected = network.state_dict()
    # Files as old as the public ones do not count batches; the count is not used outside of training.
    needed = [key for key in expected if not key.startswith(_OWN) and "num_batches_tracked" not in key]
    missing = [_public_name(key) for key in needed if key not in own]
    if missing:
        raise WeightsFormatError(f"{file} lacks {len(missing)} keys: {_listed(missing)}; {_WANTED}")
    extra = [_public_name(key) for key in own if key not in expected]
    if extra:
        raise WeightsFormatError(f"{file} is no ResNet-50: it has {_listed(extra)}; {_WANTED}")
    wrong = [
        f"{_public_name(key)} {tuple(own[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in needed
        if own[key].shape != expected[key].shape
    ]
    if wrong:
        raise WeightsFormatError(f"{file} has other shapes: {_listed(wrong)}; {_WANTED}, of ResNet-50 with 66 bins")
    network.load_state_dict(own, strict=False)
    return network.eval()
