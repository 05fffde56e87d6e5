"""The per-frame path at the speed of the hardware: one driving frame in and one out, or many at a time.

On a GPU a batch size's path is recorded once as a CUDA graph over fixed buffers and replayed: its few hundred small
kernels take longer to start from Python than to run. Frames go in and come out as stored (uint8), so that little is
copied, and nothing waits for the GPU but the copy of the result. On a CPU the same path runs as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.frozen import FusedConv
from models.head3d import Head3D, Subject
from models.motion import RegionPredictor
from models.per_frame import PerFrame, SubjectState
from models.pose_net import HeadPose

Precision = Literal["float32", "tf32", "float16", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float16", "bfloat16")
"""float32 is exact; tf32 rounds the factors of products on a GPU; the last two are for convolutions and products only,
the geometry stays float32."""
FASTEST_FIRST: tuple[Precision, ...] = ("float16", "bfloat16", "tf32")
ALLOWED_CHANGE = 0.01
"""A fast precision is taken if it changes the error of reconstructed frames by at most this share."""
WARM_RUNS = 3
"""Runs before a path is recorded: cuDNN chooses its algorithms, a compiler compiles."""


class Made(NamedTuple):
    """New frames, on the CPU.

    Attributes:
        frames: `(T, H, W, 3)` uint8.
        angles_deg: (yaw, pitch, roll) that the head was given, `(T, 3)`, degrees.
    """

    frames: Tensor
    angles_deg: Tensor


class _Recorded(NamedTuple):
    """A recorded path and its fixed buffers; those of the host are pinned, so that copies run beside the host."""

    graph: torch.cuda.CUDAGraph
    frames: Tensor
    masks: Tensor
    made: Made
    host_frames: Tensor
    host_masks: Tensor
    host_made: Made


@contextmanager
def rounding(precision: str) -> Iterator[None]:
    """Whether a GPU may round the factors of convolutions to TF32, as torch does by itself: in all but `float32`."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = False  # products of the geometry; the networks' own are few and small
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class Engine:
    """Drives one subject after another by frames.

    Attributes:
        notes: What did not go as asked, in words.
        precision: Of the networks.
    """

    def __init__(
        self,
        model: Head3D,
        precision: Precision = "float32",
        record: bool = True,
        compiled: bool = False,
        fused: bool = True,
    ) -> None:
        """Prepare; nothing is computed before the first frame.

        Args:
            model: The trained model, frozen and in eval mode; copied where needed.
            precision: Of the networks. A CPU has no use for `tf32`.
            record: On a GPU, record and replay.
            compiled: Let torch.compile fuse what it can; the first frame of a batch size then takes a minute or so.
                Where it fails, the path runs without, and `notes` says so.
            fused: On a GPU, but not in float32, let cuDNN join convolution, sum and ReLU. Where it fails, they run one
                by one, and `notes` says so.
        """
        self.model, self.precision, self.notes = model, precision, list[str]()
        self.device = model.device
        self._record = record and self.device.type == "cuda"
        self._compiled = compiled
        self._fused = fused and self.device.type == "cuda" and precision != "float32"
        self._size = (0, 0)
        self._path: PerFrame | None = None
        self._state: SubjectState | None = None
        self._recorded: dict[int, _Recorded] = {}
        self._run = self._compute

    def subject(self, images: Tensor, masks: Tensor, reference: int, use_mean: bool = False) -> Subject:
        """`Head3D.subject` in this engine's numbers: by itself, torch rounds the factors of a GPU's convolutions.

        Args:
            images: See there, as for the others.
            masks: Head masks.
            reference: Which of them is s_ref.
            use_mean: The ablation of Table 3.
        """
        with self._numbers(once=True):
            return self.model.subject(images, masks, reference, use_mean)

    @torch.inference_mode()
    def start(self, subject: Subject, first: HeadPose | None = None) -> None:
        """Take a subject; the next frames drive it.

        Args:
            subject: From `subject`, or from the model's.
            first: Pose of the first driving frame (`pose_of`) for the relative mode; None: the absolute mode.
        """
        self._take_size(*subject.reference.shape[-2:])
        assert self._path is not None
        with self._numbers():
            state = self._path.state(subject, first)
        if self._state is None or any(a.shape != b.shape for a, b in zip(self._state, state, strict=True)):
            self._state = SubjectState._make(part.clone() for part in state)
            self._recorded.clear()  # they read the old buffers
            return
        for kept, new in zip(self._state, state, strict=True):
            kept.copy_(new)

    @torch.inference_mode()
    def pose_of(self, frames: Tensor, masks: Tensor) -> HeadPose:
        """F_P's pose of stored frames, as this model has it.

        Args:
            frames: `(T, H, W, 3)` uint8.
            masks: Head masks, `(T, H, W)`, 0/1.
        """
        images = frames.to(self.device).permute(0, 3, 1, 2).float() / 255
        with self._numbers(once=True):
            return self.model.pose(images * masks.to(self.device)[:, None].float())

    @torch.inference_mode()
    def images(self, images: Tensor, masks: Tensor) -> Tensor:
        """The new frames before they are rounded, neither recorded nor compiled: to judge a precision by.

        Args:
            images: `(B, 3, H, W)`, in [0, 1].
            masks: `(B, 1, H, W)`.

        Returns:
            `(B, 3, H, W)`, float32.
        """
        assert self._path is not None
        assert self._state is not None
        with self._numbers():
            return self._path(images.to(self.device), masks.to(self.device), self._state)[0].float()

    def frame(self, frame: Tensor, mask: Tensor) -> Made:
        """One driving frame in, one frame out.

        Args:
            frame: `(H, W, 3)` uint8.
            mask: Its head mask, `(H, W)`, 0/1.

        Returns:
            One row.
        """
        return self.frames(frame[None], mask[None], 1)

    @torch.inference_mode()
    def frames(self, frames: Tensor, masks: Tensor, batch: int) -> Made:
        """Many driving frames, some at a time.

        Args:
            frames: `(T, H, W, 3)` uint8, T >= 1.
            masks: Their head masks, `(T, H, W)`, 0/1.
            batch: How many at a time; a recorded path fills up the last batch.

        Returns:
            T rows.

        Raises:
            RuntimeError: `start` was not called.
        """
        if self._state is None:
            raise RuntimeError("Engine.start takes the subject first")
        pairs = zip(frames.split(batch), masks.split(batch), strict=True)
        if self._record:
            parts = [self._replay(images, heads, batch) for images, heads in pairs]
        else:
            parts = [self._guarded(images.to(self.device), heads.to(self.device)) for images, heads in pairs]
        if len(parts) == 1:  # joining one part would copy it
            return Made(parts[0].frames.cpu(), parts[0].angles_deg.cpu())
        return Made._make(torch.cat([part[i].cpu() for part in parts]) for i in (0, 1))

    # -- one batch ----------------------------------------------------------------------------------------------------

    def _take_size(self, height: int, width: int) -> None:
        """Make the path for frames of this size."""
        if self._size == (height, width):
            return
        self._size, self._path, self._run = (height, width), PerFrame(self.model, height, width), self._compute
        flow = self._path.fusion.flow
        found = [part.head for part in flow.modules() if isinstance(part, RegionPredictor)]
        exact = (*found, flow.mask_head, flow.mask_reference, flow.attention)  # float32 always, see `scores`
        for part in self._path.modules():
            if isinstance(part, nn.Conv2d | nn.Linear) and part not in exact:
                for weight in (part.weight, part.bias):
                    if weight is not None:
                        weight.data = self._stored(weight.data)
            if isinstance(part, FusedConv):
                part.fast, part.notes = self._fused, self.notes
        if self._compiled:
            self._run = torch.compile(self._compute, dynamic=False)

    def _stored(self, weight: Tensor) -> Tensor:
        """A weight as the kernels read it; autocast alone would make it short anew in every frame."""
        if self.precision in ("float16", "bfloat16"):
            weight = weight.to(getattr(torch, self.precision))
        return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight

    @contextmanager
    def _numbers(self, once: bool = False) -> Iterator[None]:
        """The precision, while kernels are chosen.

        Args:
            once: For what is computed once per subject: never short, and no time is spent on trying kernels.
        """
        short = self.precision in ("float16", "bfloat16") and not once
        dtype = getattr(torch, self.precision) if short else None
        searched = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self._record and not once
        try:
            with rounding(self.precision), torch.autocast(self.device.type, dtype=dtype, enabled=short):
                yield
        finally:
            torch.backends.cudnn.benchmark = searched

    def _compute(self, frames: Tensor, masks: Tensor, state: SubjectState) -> Made:
        """Stored frames to stored frames, on the device."""
        assert self._path is not None
        images = frames.permute(0, 3, 1, 2) / 255  # float32; lies in memory with the channels last, as it should
        new, angles, _ = self._path(images, masks[:, None], state)
        rounded = (new * 255).round().permute(0, 2, 3, 1)  # a sigmoid made it: it is in [0, 1]
        return Made(rounded.to(torch.uint8, memory_format=torch.contiguous_format), angles)

    def _guarded(self, frames: Tensor, masks: Tensor) -> Made:
        """`_run`, without the compiler if that fails."""
        assert self._state is not None
        with self._numbers():
            try:
                return self._run(frames, masks, self._state)
            except Exception as error:
                if self._run == self._compute:
                    raise
                self._run = self._compute
                self.notes.append(f"torch.compile failed ({_first_line(error)}); the path runs without it")
                return self._compute(frames, masks, self._state)

    def _replay(self, frames: Tensor, masks: Tensor, batch: int) -> Made:
        """A recorded batch; `frames` may have fewer rows."""
        if self._record and batch not in self._recorded:
            try:
                self._recorded[batch] = self._record_batch(frames, masks, batch)
            except RuntimeError as error:
                self.notes.append(f"recording failed ({_first_line(error)}); the path runs from Python")
                self._record = False
        if not self._record:
            return self._guarded(frames.to(self.device), masks.to(self.device))
        kept, count = self._recorded[batch], len(frames)
        for given, host, device in ((frames, kept.host_frames, kept.frames), (masks, kept.host_masks, kept.masks)):
            if given.device.type == "cpu":
                host[:count].copy_(given)
                device[:count].copy_(host[:count], non_blocking=True)
            else:
                device[:count].copy_(given)
        kept.graph.replay()
        for result, host in zip(kept.made, kept.host_made, strict=True):
            host.copy_(result, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()  # the one wait: for the result itself
        return Made._make(host[:count].clone() for host in kept.host_made)

    def _record_batch(self, frames: Tensor, masks: Tensor, batch: int) -> _Recorded:
        assert self._state is not None
        rows = torch.arange(batch) % len(frames)
        inputs = [given.to(self.device)[rows.to(self.device)].contiguous() for given in (frames, masks.byte())]
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_RUNS):
                self._guarded(*inputs)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with self._numbers(), torch.cuda.graph(graph):
            made = self._run(inputs[0], inputs[1], self._state)
            made = Made(made.frames.contiguous(), made.angles_deg.contiguous())
        host = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in (*inputs, *made)]
        return _Recorded(graph, inputs[0], inputs[1], made, host[0], host[1], Made(host[2], host[3]))


def _first_line(error: Exception) -> str:
    """What an error says, shortly."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def change_of_error(model: Head3D, engine: Engine, subject: Subject, frames: Tensor, masks: Tensor) -> float:
    """By which share an engine's error differs from the plain float32 model's, on frames of the subject itself.

    Args:
        model: The model.
        engine: What is judged; it starts with `subject`.
        subject: Made of these frames.
        frames: `(T, H, W, 3)` uint8; driven by them, the subject should come out as they are.
        masks: Head masks, `(T, H, W)`.

    Returns:
        |MSE of the engine - MSE of the model| / MSE of the model; NaN where the engine gives no numbers.
    """
    return _share(_error(engine, subject, frames, masks), _error(_exact(model), subject, frames, masks))


def _exact(model: Head3D) -> Engine:
    """What the others are compared with."""
    return Engine(model, "float32", record=False)


def _error(engine: Engine, subject: Subject, frames: Tensor, masks: Tensor) -> float:
    """Mean square error of an engine that drives the subject by its own frames."""
    images = frames.to(engine.device).permute(0, 3, 1, 2).float() / 255
    engine.start(subject)
    return float((engine.images(images, masks.to(engine.device)[:, None].float()) - images).square().mean())


def _share(error: float, exact: float) -> float:
    """By which share of it an error differs from the exact model's."""
    return abs(error - exact) / max(exact, 1e-12)


def choose_precision(model: Head3D, subject: Subject, frames: Tensor, masks: Tensor) -> Precision:
    """The fastest precision that leaves the quality as it is (`ALLOWED_CHANGE`); float32 on a CPU.

    Args:
        model: The model.
        subject: Made of these frames.
        frames: `(T, H, W, 3)` uint8.
        masks: Head masks, `(T, H, W)`.
    """
    if model.device.type == "cpu":
        return "float32"
    exact = _error(_exact(model), subject, frames, masks)
    for precision in FASTEST_FIRST:
        engine = Engine(model, precision, record=False)
        if _share(_error(engine, subject, frames, masks), exact) <= ALLOWED_CHANGE:
            return precision
    return "float32"
