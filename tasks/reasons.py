"""Why a video gave no clip, or a clip no mask: every code that a table's column `reason` may hold, with a sentence."""

from __future__ import annotations

VIDEO = {
    "missing": "The file of the list is not there (any more).",
    "empty_file": "The file has zero bytes.",
    "unreadable": "No frame of it can be decoded: no video, cut off before its index, or an unknown codec.",
    "too_short": "The video, its section, or the part that shows the face has fewer frames than a clip.",
    "no_face": "No face is found, or it is seen in too few of the frames that were looked at.",
    "not_in_box": "Faces are seen, but none in the box that the list names.",
    "too_small": "The face has fewer pixels than `crop.min_face_px`.",
    "two_faces": "Another face of similar size is there all the time.",
    "frozen": "The picture stands still: a photograph or a stopped stream shows no motion to learn from.",
    "deadline": "Reading it took longer than `runtime.video_deadline_s`; decoders hang on some files.",
    "crashed": "The worker process died twice on it, or the code raised.",
}
"""Codes of `data/clips.parquet`."""

MASK = {
    "no_face": "Neither landmarks nor face boxes of the clip are known.",
    "empty_mask": "A frame of the clip has no head in it.",
    "implausible_area": "The head takes an implausible share of the frame.",
    "deadline": "Parsing took longer than `runtime.video_deadline_s`.",
    "crashed": "The worker process died twice on it, or the code raised.",
}
"""Codes of `data/masks.parquet`."""


def sentence(code: str) -> str:
    """What a code means; the code itself if it is none of ours (an older table)."""
    return VIDEO.get(code) or MASK.get(code) or code
