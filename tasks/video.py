"""Video in and out: the names the other modules use."""

from __future__ import annotations

from tasks.video_read import VideoError, VideoInfo, iterate_frames, probe, read_frames
from tasks.video_write import write_video

__all__ = ["VideoError", "VideoInfo", "iterate_frames", "probe", "read_frames", "write_video"]
