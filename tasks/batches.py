"""Brings each step's batch to the device: what was drawn and, of clips that do not lie there, the frames it names."""

from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from tasks.ranks import Ranks
from tasks.room import Rows

if TYPE_CHECKING:
    from tasks.training import Training

Tensors = dict[str, Tensor]

STOP_S = 10.0
"""So long a thread may take to end; one that a dead GPU or disk holds up must not hold up the end of the run."""


def batches_of(job: Training, ranks: Ranks) -> Batches:
    """The batches of a training, from wherever its clips lie."""
    return Batches(job, ranks) if job.rows is None else PrefetchedBatches(job, ranks)


@dataclass(frozen=True)
class _Buffers:
    """Tensors that keep their places as long as their shapes and types stay."""

    device: torch.device
    pinned: bool = False
    kept: Tensors = field(default_factory=dict)

    def at(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The one of this name; a new one if there is none of that shape and type."""
        old = self.kept.get(name)
        if old is None or old.shape != shape or old.dtype != dtype:
            self.kept[name] = torch.empty(shape, dtype=dtype, device=self.device, pin_memory=self.pinned)
        return self.kept[name]

    def take(self, values: Tensors) -> Tensors:
        """Copies of tensors, here; they may be under way."""
        for name, value in values.items():
            self.at(name, tuple(value.shape), value.dtype).copy_(value, non_blocking=True)
        return {name: self.kept[name] for name in values}


class Batches:
    """This process's share of each batch, drawn when it is asked for. A context that ends with the training.

    On a GPU the tensors keep their places as long as their shapes stay: a recorded step reads them there.
    """

    def __init__(self, job: Training, ranks: Ranks) -> None:
        self.job, self.ranks, self.device = job, ranks, job.device
        self._places = _Buffers(self.device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, step: int) -> Tensors:
        """All that the losses of a step need, on the device; valid until the next call."""
        drawn = self._draw(step)
        if self.device.type == "cpu":
            return drawn
        return self._places.take({name: value.pin_memory() for name, value in drawn.items()})

    def close(self) -> None:
        """Stop what runs in the background."""

    def _draw(self, step: int) -> Tensors:
        return self.ranks.share(self.job.losses.draw(step), self.job.name)


class _Slot:
    """One batch on its way: in the host's (pinned) memory, then on the device beside the step that is computed.

    Attributes:
        values: The batch on the device.
    """

    def __init__(self, device: torch.device, side: torch.cuda.Stream | None) -> None:
        self.values: Tensors = {}
        self._side = side
        self._host, self._there = _Buffers(torch.device("cpu"), pinned=side is not None), _Buffers(device)
        self._used, self._copied = (torch.cuda.Event(blocking=True) if side else None for _ in range(2))

    def fill(self, drawn: Tensors, rows: dict[str, Rows]) -> None:
        """Gather a batch and copy it to the device; returns when it is there."""
        self.values = self._host.take(drawn)
        for name, part in rows.items():
            self.values[name] = self._host.at(name, part.shape, part.source.dtype)
            part.into(self.values[name])
        if self._side is None or self._used is None or self._copied is None:
            return
        with torch.cuda.stream(self._side):
            self._side.wait_event(self._used)
            self.values = self._there.take(self.values)
            self._copied.record(self._side)
        # Only now the step may have it: so waiting for the copy, too, is seen as waiting for data.
        self._copied.synchronize()

    def taken(self) -> None:
        """The device's work so far takes the batch away: only after it the next one may be copied over it."""
        if self._used is not None:
            self._used.record(torch.cuda.current_stream(self._there.device))


class PrefetchedBatches(Batches):
    """The same batches, drawn and gathered by a thread while the steps before are computed.

    A step's draw depends on the seed and the step alone, so the thread runs ahead, by as many steps as there are slots.
    """

    SLOTS = 4

    def __init__(self, job: Training, ranks: Ranks) -> None:
        super().__init__(job, ranks)
        self._next: int | None = None
        self._thread: threading.Thread | None = None
        self._free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Slot | BaseException] = queue.SimpleQueue()

    def get(self, step: int) -> Tensors:
        """All that the losses of a step need.

        Raises:
            BaseException: What went wrong in the thread, as it is.
        """
        if step != self._next:
            self.close()
            self._start(step)
        self._next = step + 1
        slot = self._ready.get()
        if isinstance(slot, BaseException):
            self.close()
            raise slot
        placed = self._places.take(slot.values)
        slot.taken()
        self._free.put(slot)
        return placed

    def close(self) -> None:
        """Stop the thread."""
        if self._thread is not None:
            while not self._free.empty():  # no slot is filled any more
                self._free.get()
            self._free.put(None)
            self._thread.join(STOP_S)
        self._thread = self._next = None

    def _start(self, step: int) -> None:
        self._free, self._ready = queue.SimpleQueue(), queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, args=(step, self._free, self._ready), name="batches", daemon=True
        )
        self._thread.start()

    def _run(
        self, step: int, free: queue.SimpleQueue[_Slot | None], ready: queue.SimpleQueue[_Slot | BaseException]
    ) -> None:
        try:
            on_gpu = self.device.type == "cuda"
            assert self.job.rows is not None
            with torch.cuda.device(self.device) if on_gpu else contextlib.nullcontext():
                side = torch.cuda.Stream(self.device) if on_gpu else None
                for _ in range(self.SLOTS):
                    free.put(_Slot(self.device, side))
                while (slot := free.get()) is not None:
                    drawn = self._draw(step)
                    slot.fill(drawn, self.job.rows(drawn))
                    ready.put(slot)
                    step += 1
        except BaseException as error:
            ready.put(error)
