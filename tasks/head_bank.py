"""Canonical heads of the training clips, made once for stage 3: stages 1 and 2 are frozen then."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.canonical import CanonicalHead, RecurrentCanonical, mean_canonical, warp_references
from models.config import Optim
from models.precision import mixed
from tasks.clip_data import ClipSet, Drawn, Recolour, draw_frames, draw_looks
from tasks.progress import progress
from tasks.room import Room, Rows


@dataclass(frozen=True)
class HeadBank:
    """M canonical heads of each clip, each made of other references.

    Attributes:
        image: x_hat^c, `(n, M, 3, H, W)` uint8.
        mask: `(n, M, 1, H, W)` uint8.
        depth: d^c, `(n, M, H, W)` float16, metres.
        clip: Of their references, `(n, M, N)`, positions in the set; on the CPU.
        frame: The same.
        streamed: Images, masks and depths lie in the host's memory, or in a file.
    """

    image: Tensor
    mask: Tensor
    depth: Tensor
    clip: Tensor
    frame: Tensor
    streamed: bool = False

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

    def rows(self, drawn: Drawn) -> dict[str, Rows]:
        """What `take` needs on the device if the heads are streamed; nothing if they lie there."""
        place = drawn["head"][:, 0] * self.frame.shape[1] + drawn["head"][:, 1]
        parts = {"image": self.image, "mask": self.mask, "depth": self.depth}
        return {f"bank_{name}": Rows(part.flatten(0, 1), place) for name, part in parts.items() if self.streamed}

    def _drawn_part(self, name: str, drawn: Drawn) -> Tensor:
        if f"bank_{name}" in drawn:
            return drawn[f"bank_{name}"]
        values, where = getattr(self, name), drawn["head"]
        return values[where.to(values.device).unbind(1)].to(where.device)

    def take(self, drawn: Drawn, recolour: Recolour) -> CanonicalHead:
        """Heads, coloured and mirrored like the frames beside them.

        Args:
            drawn: From `draw`, on the device; of streamed heads with what `rows` names.
            recolour: That of the batch's frames.
        """
        flip = drawn["flip"]
        image, mask = (self._drawn_part(name, drawn).float() / 255 for name in ("image", "mask"))
        # x_hat^c is dark where its mask is: the colour below is changed, not the darkness.
        image = recolour(image / mask.clamp(min=1e-2)) * mask
        depth = self._drawn_part("depth", drawn).float()[:, None]
        image, mask, depth = (
            torch.where(flip[:, None, None, None], values.flip(-1), values) for values in (image, mask, depth)
        )
        return CanonicalHead(image, mask, depth[:, 0])


@torch.no_grad()
def make_heads(
    clips: ClipSet,
    config: Optim,
    variants: int,
    canonical: RecurrentCanonical,
    K: Tensor,
) -> HeadBank:
    """Make the canonical heads of all training clips, of seeded references.

    Args:
        clips: With geometry.
        config: N, seed and precision of stage 3.
        variants: M.
        canonical: Stage 2, frozen.
        K: `(3, 3)`.

    Returns:
        The heads, on the clips' device if they fit there, too.
    """
    device, size = clips.device, clips.size_px
    generator = torch.Generator().manual_seed(config.seed)
    front, pixels = (len(clips), variants), (size, size)
    space = (clips.room or Room.on(device)).space(
        {
            "image": ((*front, 3, *pixels), torch.uint8),
            "mask": ((*front, 1, *pixels), torch.uint8),
            "depth": ((*front, *pixels), torch.float16),
        }
    )
    image, mask, deep = (space.tensors[name] for name in ("image", "mask", "depth"))
    mine, chosen = space.mine(len(clips)), []
    with progress("canonical heads", len(clips), "clip") as bar:
        for index in range(len(clips)):
            picks = [draw_frames(clips, config, index, config.references, generator) for _ in range(variants)]
            clip, frame = torch.stack(picks, dim=1)  # (M, N) each
            chosen.append((clip, frame))
            bar.update()
            if index not in mine:
                continue
            heads, masks = clips.heads(clip.to(device), frame.to(device))
            poses = clips.poses(clip.flatten().to(device), frame.flatten().to(device))
            depths = clips.depths(clip.to(device), frame.to(device))
            warped, warp = warp_references(heads, masks, depths, poses, K)
            with mixed(device, config.precision):
                made = canonical(heads, mean_canonical(warped, warp), warp)
            image[index], mask[index] = ((part.float() * 255).round().byte() for part in made[:2])
            deep[index] = made.depth
    space.filled()
    clip, frame = (torch.stack(part) for part in zip(*chosen, strict=True))
    return HeadBank(image, mask, deep, clip, frame, space.streamed)
