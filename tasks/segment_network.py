"""Frames -> class ids by a trained network: probabilities, steadied over time, one head kept, enlarged.

Probabilities and not labels are averaged and enlarged, so that outlines move and curve smoothly. A neighbouring frame
counts at a pixel as much as its colour there is alike: still regions are steadied, moving edges are not smeared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import labels
from tasks.labels import head_mask
from tasks.parser_network import ParserNetwork

COLOUR_SIGMA = 12.0
"""Difference of colour (of 255, root mean square over 3 x 3 pixels) at which a neighbouring frame counts 0.6."""
ISLAND_GAP = 0.012
"""Parts of the head that are this share of the frame's side apart (a strand, an earring) still belong together."""
LARGE_PIXELS = 4_000_000
"""A larger picture's probabilities are enlarged in strips of so many pixels."""


def segment_network(
    frames: np.ndarray, face_box: np.ndarray, network: ParserNetwork, work_px: int, smooth_frames: int
) -> np.ndarray:
    """Class ids of a clip.

    Args:
        frames: `(T, H, W, 3)` u1 RGB; not square: squeezed to a square for the network and back.
        face_box: `(T, 4)` x0, y0, x1, y1 of the face that is meant, in pixels; NaN: the largest head.
        network: The parser.
        work_px: Side at which it sees a frame.
        smooth_frames: Odd window of the temporal smoothing; 1: none.

    Returns:
        `(T, H, W)` u1.
    """
    side, size = network.side(work_px), (frames.shape[2], frames.shape[1])
    step = network.batch_frames(side)
    batches = (
        np.stack([resized(frame, side) for frame in frames[start : start + step]])
        for start in range(0, len(frames), step)
    )
    out = np.empty(frames.shape[:3], np.uint8)
    t = 0
    for shares in steady(batches, network, smooth_frames):
        for class_ids in label_maps(shares, size, face_box[t : t + len(shares)]):
            out[t] = class_ids
            t += 1
    return out


def resized(frame: np.ndarray, side: int) -> np.ndarray:
    """`(H, W, 3)` as a square of `side`: area filter to shrink, linear to enlarge."""
    if frame.shape[:2] == (side, side):
        return frame
    shrink = min(frame.shape[:2]) >= side
    return cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


@torch.inference_mode()
def steady(batches: Iterable[np.ndarray], network: ParserNetwork, smooth_frames: int) -> Iterator[Tensor]:
    """Class probabilities of successive frames, averaged over time; the batches' sizes do not show in them.

    Args:
        batches: `(n, S, S, 3)` u1 RGB.
        network: The parser.
        smooth_frames: Odd window.

    Yields:
        `(m, S, S, 19)` float32; in all as many frames as came in, some frames later.
    """
    reach = smooth_frames // 2
    images, shares, given = torch.empty(0), torch.empty(0), 0  # what is held; the first `given` are given out
    for batch in batches:
        new_images, new_shares = _blurred(batch, network.device), network.probabilities(batch)
        images = torch.cat([images, new_images]) if len(images) else new_images
        shares = torch.cat([shares, new_shares]) if len(shares) else new_shares
        ready = len(shares) - reach
        if ready > given:
            yield _average(images, shares, reach)[given:ready]
            kept = max(0, ready - reach)
            images, shares, given = images[kept:], shares[kept:], ready - kept
    if len(shares) > given:
        yield _average(images, shares, reach)[given:]


def _blurred(images: np.ndarray, device: torch.device) -> Tensor:
    """`(n, S, S, 3)` u1 to float32 of the same shape, 3 x 3 mean: what frames are compared by."""
    return torch.from_numpy(np.stack([cv2.blur(image, (3, 3)) for image in images])).to(device).float()


def _average(images: Tensor, shares: Tensor, reach: int) -> Tensor:
    """Mean of `shares (T, S, S, 19)` over up to `reach` frames to each side, weighed by likeness of colour."""
    if not reach or len(shares) == 1:
        return shares
    total, weights = shares.clone(), torch.ones_like(shares[..., :1])
    for shift in range(1, min(reach + 1, len(shares))):
        difference = (images[shift:] - images[:-shift]).square().mean(dim=-1, keepdim=True)
        alike = torch.exp(difference / (-2 * COLOUR_SIGMA**2))
        total[shift:].addcmul_(alike, shares[:-shift])
        total[:-shift].addcmul_(alike, shares[shift:])
        weights[shift:] += alike
        weights[:-shift] += alike
    return total.div_(weights)


# -- probabilities to labels ------------------------------------------------------------------------------------------


@torch.inference_mode()
def label_maps(shares: Tensor, size: tuple[int, int], face_boxes: np.ndarray) -> Iterator[np.ndarray]:
    """The classes of successive frames at their own size, with one head.

    Args:
        shares: `(m, S, S, 19)` probabilities; those of islands are changed in place.
        size: Width and height of the frames.
        face_boxes: `(m, 4)` in pixels of the frames; NaN: unknown.

    Yields:
        `(H, W)` u1 per frame.
    """
    side = shares.shape[1]
    best = shares.max(dim=-1).indices.byte().cpu().numpy()
    scale = side / np.array([*size, *size])
    for share, class_ids, box in zip(shares, best, face_boxes, strict=True):
        islands = find_islands(class_ids, box * scale)
        if islands is not None:
            # with the pixels around them, lest a rim comes back when the probabilities are enlarged
            where = torch.from_numpy(cv2.dilate(islands.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
            where = where.to(share.device)
            others = share[where]
            others[:, list(labels.HEAD_AND_HAT)] = 0
            share[where] = others
            class_ids[where.cpu().numpy()] = others.max(dim=-1).indices.byte().cpu().numpy()
        yield class_ids if size == (side, side) else enlarged_labels(share, class_ids, size)


def enlarged_labels(share: Tensor, class_ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Argmax of the probabilities after bilinear resizing.

    Args:
        share: `(S, S, 19)`.
        class_ids: `(S, S)` u1, its argmax; a class that wins nowhere there is left out.
        size: Width and height to resize to.

    Returns:
        `(H, W)` u1.
    """
    width, height = size
    present = np.unique(class_ids)
    planes = share[..., torch.from_numpy(present).to(share.device).long()].movedim(-1, 0)
    shrink = min(size) < len(share)
    if shrink or (share.device.type == "cuda" and width * height <= LARGE_PIXELS):
        large = F.interpolate(planes[None], size=(height, width), mode="bilinear", antialias=shrink)[0]
        return present[large.max(dim=0).indices.byte().cpu().numpy()]
    return present[_enlarged_argmax(planes.cpu().numpy(), size)]


def _enlarged_argmax(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`(C, S, S)` to the winning channel `(H, W)` u1 at `size`, nowhere smaller than S; large pictures in strips."""
    (width, height), side = size, planes.shape[1]
    out = np.zeros((height, width), np.uint8)
    if width * height <= LARGE_PIXELS:
        _win((cv2.resize(np.ascontiguousarray(plane), size) for plane in planes), out)
        return out
    wide = [cv2.resize(np.ascontiguousarray(plane), (width, side)) for plane in planes]
    rows = np.clip((np.arange(height) + 0.5) * side / height - 0.5, 0, side - 1)  # OpenCV's grid
    low = np.floor(rows).astype(int)
    high, part = np.minimum(low + 1, side - 1), (rows - low).astype(np.float32)[:, None]
    step = max(1, LARGE_PIXELS // width)
    for top in range(0, height, step):
        at = slice(top, top + step)
        _win((plane[low[at]] * (1 - part[at]) + plane[high[at]] * part[at] for plane in wide), out[at])
    return out


def _win(planes: Iterable[np.ndarray], out: np.ndarray) -> None:
    """Write into `out` which of the planes is the largest at each pixel; one of them is held at a time."""
    best: np.ndarray | None = None
    for channel, plane in enumerate(planes):
        if best is None:
            best = plane
        else:
            out[plane > best] = channel
            cv2.max(best, plane, dst=best)


def find_islands(class_ids: np.ndarray, face_box: np.ndarray) -> np.ndarray | None:
    """Head pixels that do not hang together with the head that is meant.

    Args:
        class_ids: `(H, W)` u1.
        face_box: `(4,)` pixels; the head is the part that covers most of it. NaN: the largest part.

    Returns:
        `(H, W)` bool, or None where there are none.
    """
    head = head_mask(class_ids, list(labels.HEAD_AND_HAT))
    reach = max(1, round(ISLAND_GAP * max(head.shape) / 2))
    joined = cv2.dilate(head, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8, ltype=cv2.CV_32S)
    if count <= 2:
        return None
    main = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if np.isfinite(face_box).all():
        x0, y0, x1, y1 = np.round(face_box).astype(int)
        inside = parts[max(0, y0) : max(0, y1) + 1, max(0, x0) : max(0, x1) + 1]
        covered = np.bincount(inside.ravel(), minlength=count)[1:]
        if covered.any():
            main = 1 + int(covered.argmax())
    return (head == 1) & (parts != main)
