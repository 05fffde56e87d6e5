"""Canonical heads of the training clips, made once for stage 3: stages 1 and 2 are frozen then."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.canonical import CanonicalHead, RecurrentCanonical, warp_references
from models.config import Optim
from models.depth_net import DepthNetwork
from models.precision import mixed
from tasks.clip_data import ClipSet, Drawn, Recolour, draw_frames, draw_looks
from tasks.progress import progress


@dataclass(frozen=True)
class HeadBank:
    """M canonical heads of each clip, each made of other references.

    Attributes:
        image: x_hat^c, `(n, M, 3, H, W)` uint8.
        mask: `(n, M, 1, H, W)` uint8.
        depth: d^c, `(n, M, H, W)` float16, metres.
        clip: Of their references, `(n, M, N)`, positions in the set; on the CPU.
        frame: The same.
    """

    image: Tensor
    mask: Tensor
    depth: Tensor
    clip: Tensor
    frame: Tensor

    def draw(self, clips: ClipSet, config: Optim, generator: torch.Generator) -> Drawn:
        """Which heads a step takes, with a reference of each as s_ref and a frame of none of them as s_dri.

        Args:
            clips: The clips that the bank was made of.
            config: Batch size, and where a sample's frames come from.
            generator: From `step_generator`.

        Returns:
            `head (B, 2)` (clip, which of its heads), `clip` and `frame` `(B, 2)` of s_ref and s_dri, `flip (B,)`,
            `jitter (B, 3)`.
        """
        batch, (count, variants) = config.batch_videos, self.frame.shape[:2]
        head = torch.stack([torch.randint(limit, (batch,), generator=generator) for limit in (count, variants)], dim=1)
        pairs = []
        for index, variant in head.tolist():
            taken = torch.stack([self.clip[index, variant], self.frame[index, variant]])
            # One more than there are references: at least one frame is not among them.
            others = draw_frames(clips, config, index, taken.shape[1] + 1, generator)
            free = (others[:, :, None] != taken[:, None]).any(0).all(1)
            driving = others[:, free][:, :1]
            pairs.append(torch.cat([taken[:, :1], driving], dim=1))
        clip, frame = torch.stack(pairs, dim=1)
        return {"head": head, "clip": clip, "frame": frame, **draw_looks(batch, generator)}

    def take(self, head: Tensor, flip: Tensor, recolour: Recolour) -> tuple[CanonicalHead, Tensor]:
        """Heads and their depth `(B, H, W)`, coloured and mirrored like the frames beside them.

        Args:
            head: From `draw`, `(B, 2)`.
            flip: `(B,)` bool.
            recolour: That of the batch's frames.
        """
        where = head.unbind(1)
        image, mask = self.image[where].float() / 255, self.mask[where].float() / 255
        # x_hat^c is dark where its mask is: the colour below is changed, not the darkness.
        image = recolour(image / mask.clamp(min=1e-2)) * mask
        depth = self.depth[where].float()[:, None]
        image, mask, depth = (
            torch.where(flip[:, None, None, None], values.flip(-1), values) for values in (image, mask, depth)
        )
        return CanonicalHead(image, mask), depth[:, 0]


@torch.no_grad()
def make_heads(
    clips: ClipSet,
    config: Optim,
    variants: int,
    canonical: RecurrentCanonical,
    depth: DepthNetwork,
    K: Tensor,
) -> HeadBank:
    """Make the canonical heads of all training clips, of seeded references.

    Args:
        clips: With geometry.
        config: N, seed and precision of stage 3.
        variants: M.
        canonical: Stage 2, frozen.
        depth: F_D, frozen.
        K: `(3, 3)`.

    Returns:
        The heads, on the clips' device.
    """
    device, size = clips.frames.device, clips.size_px
    generator = torch.Generator().manual_seed(config.seed)
    image = torch.empty(len(clips), variants, 3, size, size, dtype=torch.uint8, device=device)
    mask = torch.empty(len(clips), variants, 1, size, size, dtype=torch.uint8, device=device)
    deep = torch.empty(len(clips), variants, size, size, dtype=torch.float16, device=device)
    chosen = []
    with progress("canonical heads", len(clips), "clip") as bar:
        for index in range(len(clips)):
            picks = [draw_frames(clips, config, index, config.references, generator) for _ in range(variants)]
            clip, frame = torch.stack(picks, dim=1)  # (M, N) each
            chosen.append((clip, frame))
            heads, masks = clips.heads(clip.to(device), frame.to(device))
            poses = clips.poses(clip.flatten().to(device), frame.flatten().to(device))
            depths = clips.depths(clip.to(device), frame.to(device))
            warped, warp = warp_references(heads, masks, depths, poses, K)
            with mixed(device, config.precision):
                made = canonical(heads, warped, warp)
                deep[index] = depth(made.image)
            image[index], mask[index] = ((part.float() * 255).round().byte() for part in made)
            bar.update()
    clip, frame = (torch.stack(part) for part in zip(*chosen, strict=True))
    return HeadBank(image, mask, deep, clip, frame)
