"""F_P, the pose network (Sec. 4.2): HopeNet's binned angles on a ResNet, with a head for the translation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models as tv

from models.config import Camera, PoseNet
from models.geometry import NOMINAL_DISTANCE_M, Pose, pose_from_angles
from models.kept import constant
from models.normalised import Normalised
from models.norms import BatchNorm2d
from models.precision import full_precision
from models.warp import normalised_grid

BINS, BIN_DEG, FIRST_DEG = 66, 3.0, -99.0
"""HopeNet's angle bins: 66 of 3 degrees, the expected value is sum(p * index) * 3 - 99."""


def bins(like: Tensor) -> Tensor:
    """0 to 65, `(66,)`."""
    return constant("bins", (), like, lambda: torch.arange(BINS, dtype=like.dtype, device=like.device))


def _homogeneous(like: Tensor) -> Tensor:
    """(x, y, 1) of every pixel in normalised coordinates, `(H, W, 3)`."""
    grid = normalised_grid(like.shape[-2], like.shape[-1], like)[0]
    return torch.cat([grid, torch.ones_like(grid[..., :1])], -1)


class HeadPose(NamedTuple):
    """What F_P predicts.

    Attributes:
        angles_deg: (yaw, pitch, roll), `(B, 3)`, degrees.
        translation_m: t_pred, `(B, 3)`, metres.
    """

    angles_deg: Tensor
    translation_m: Tensor

    def pose(self) -> Pose:
        """R and t of Eq. 1 and 3."""
        return pose_from_angles(self.angles_deg, self.translation_m)


class SlimTrunk(nn.Module):
    """Strided convolutions for small frames on a CPU; a 4 x 4 layout is kept, since an average would lose position."""

    channels = 256

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for channels in (32, 64, 128, 256):
            for stride, width in ((2, last), (1, channels)):
                layers.append(nn.Conv2d(width, channels, 3, stride=stride, padding=1, bias=False))
                layers += [BatchNorm2d(channels), nn.ReLU()]
            last = channels
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(1))
        self.gather = nn.Sequential(nn.Linear(16 * last, self.channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, 256)`."""
        return self.gather(self.body(x))


class Layout(nn.Module):
    """Where things are in a ResNet's last features, which its pooling forgets: 32 channels on a grid of 4 x 4.

    Source: our choice, for the translation.
    """

    channels = 32 * 16

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels_in, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(B, 512)`."""
        return self.body(x)


def _trunk(backbone: str) -> tuple[nn.Module, int]:
    """The feature extractor and its channels."""
    if backbone == "slim":
        return SlimTrunk(), SlimTrunk.channels
    make = tv.resnet50 if backbone == "resnet50" else tv.resnet18
    resnet = make(weights=None, norm_layer=BatchNorm2d)
    return nn.Sequential(*list(resnet.children())[:-1]), resnet.fc.in_features


class PoseNetwork(nn.Module):
    """F_P: pose of the head in an image.

    Source: HopeNet ([33]) with a translation head, Sec. 4.2. Our choice: the head is centred first; angles are softly
    bounded to +-max_angle_deg and the translation to +-max_translation_m, both by tanh; the translation head starts at
    zero.
    """

    def __init__(self, config: PoseNet, camera: Camera) -> None:
        super().__init__()
        self.camera, self.input_px = camera, config.input_px
        self.trunk, channels = _trunk(config.backbone)
        self.fc_yaw, self.fc_pitch, self.fc_roll = (nn.Linear(channels, BINS) for _ in range(3))
        self.layout = None if config.backbone == "slim" else Layout(channels)
        self.fc_translation = nn.Linear(channels + (Layout.channels if self.layout else 0), 3)
        nn.init.zeros_(self.fc_translation.weight)
        nn.init.zeros_(self.fc_translation.bias)
        self.normal = Normalised()

    def forward(self, image: Tensor) -> HeadPose:
        """Pose of head images.

        Args:
            image: Head on black, `(B, 3, H, W)`, in [0, 1].

        Returns:
            The pose of each.
        """
        return self.predict(image)[0]

    def predict(self, image: Tensor) -> tuple[HeadPose, Tensor | None]:
        """The pose and the scores of the bins it was made of.

        Args:
            image: As for `forward`.

        Returns:
            The pose of each, and logits `(B, 3, 66)` for `bin_loss`; None from a network whose bins mean other angles.
        """
        image, shift = self._centred(image)
        feature, placed = self.features(self.normal(image))
        logits = self._logits(feature)
        angles = (logits.softmax(-1) * bins(logits)).sum(-1) * BIN_DEG + FIRST_DEG
        angles = self.camera.max_angle_deg * torch.tanh(angles / self.camera.max_angle_deg)
        limit = self.camera.max_translation_m
        translation = limit * torch.tanh(self.fc_translation(placed).float() + shift / limit)
        return HeadPose(angles, translation), logits

    @full_precision
    def _centred(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The image moved so that the head's centre of area is in its middle, at the network's size; and that shift.

        Source: our choice. Pooling over the image loses places, so the shift is measured instead and the network only
        says what remains: how the head's centre lies to its area.

        Args:
            image: Head on black, `(B, 3, H, W)`.

        Returns:
            `(B, 3, input_px, input_px)`, and the translation that the shift stands for, `(B, 3)`, metres, z = 0.
        """
        height, width = image.shape[-2:]
        if height > 2 * self.input_px:  # sampling would skip pixels
            image = F.interpolate(image, (self.input_px, self.input_px), mode="bilinear", antialias=True)
        seen = image.amax(dim=1) > 0.02
        x_y_1 = constant("x_y_1", tuple(image.shape[-2:]), image, lambda: _homogeneous(image))
        moments = (seen[..., None] * x_y_1).sum((1, 2))
        centre = moments / moments[:, 2:].clamp(min=1)  # x, y, and whether anything is seen
        grid = normalised_grid(self.input_px, self.input_px, image) + centre[:, None, None, :2]
        centred = F.grid_sample(image, grid, align_corners=True)
        half = math.tan(math.radians(self.camera.fov_deg) / 2) * NOMINAL_DISTANCE_M  # half the frame's width, metres

        def reach() -> Tensor:
            sides = (half, half * (height - 1) / (width - 1), 0.0)
            return torch.cat([torch.full((1,), side, dtype=image.dtype, device=image.device) for side in sides])

        return centred, centre * constant("reach", (height, width), image, reach)

    def _logits(self, feature: Tensor) -> Tensor:
        """Scores of the bins of the three angles, `(B, 3, 66)`, float32."""
        heads = (self.fc_yaw, self.fc_pitch, self.fc_roll)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch.stack([head(feature) for head in heads], dim=1).float()
        weight = constant("bins.weight", (), heads[0].weight, lambda: torch.cat([head.weight for head in heads]))
        bias = constant("bins.bias", (), heads[0].bias, lambda: torch.cat([head.bias for head in heads]))
        return F.linear(feature, weight, bias).unflatten(1, (3, BINS)).float()

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features for the angles, `(B, C)`, and for the translation, which may know more of places, `(B, C')`."""
        if self.layout is None:
            feature = self.trunk(image)
            return feature, feature
        *convolutions, pool = self.trunk.children()
        for layer in convolutions:
            image = layer(image)
        feature = pool(image).flatten(1)
        return feature, torch.cat([feature, self.layout(image)], dim=1)

    def bin_loss(self, logits: Tensor, angles_deg: Tensor) -> Tensor:
        """Cross-entropy of the bins against known angles, as HopeNet is trained ([33]): the expected value alone learns
        slowly, because at first all bins are equally likely.

        Source: our choice for labels between two bins: both are right, in proportion.

        Args:
            logits: From `predict`, `(B, 3, 66)`.
            angles_deg: `(B, 3)`, degrees, within the camera's bound.

        Returns:
            `(B, 3)`.
        """
        limit = self.camera.max_angle_deg
        raw = limit * torch.atanh((angles_deg / limit).clamp(-0.95, 0.95))  # before the soft bound
        place = ((raw - FIRST_DEG) / BIN_DEG).clamp(0, BINS - 1)
        index = torch.arange(BINS, dtype=place.dtype, device=place.device)
        target = (1 - (place[..., None] - index).abs()).clamp(min=0)
        return -(target * logits.log_softmax(-1)).sum(-1)
