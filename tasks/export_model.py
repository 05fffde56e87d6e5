"""The trained model as files that other programs run: the path of a frame and that of a subject, by torch.export, ONNX.

Every file is loaded again and compared with the model itself on frames it was not traced with. The splat's z-buffer
and sums (scatter with minimum and addition), bilinear sampling and filtered resizing are all ONNX operations since
opset 18; nothing had to be replaced. Shapes are fixed: frame size, frames at a time and N are chosen when exporting.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.head3d import Head3D
from models.per_frame import PerFrame, SubjectState
from tasks.bench_animate import drawn_frames
from tasks.errors import StageError
from tasks.output import check_place
from tasks.trained import load_model, load_preparation

FORMATS = ("torch", "onnx")
PARTS = ("frame", "subject")
OPSET = 20
MOST_ROUGH_SHARE, MOST_MEAN = 0.002, 1e-4
"""A file passes whose frames differ by more than half a grey level in at most this share of the values, and by so much
on average. A single pixel may differ more: at the head's edge, rounding decides whether a pixel is seen."""
HALF_LEVEL = 0.5 / 255

APART = 3
"""Of the painted frames, every so many are taken: neighbours may be alike."""

RANGES = {
    "driving": "RGB in [0, 1]; the cropped driving frames",
    "mask": "0 or 1; their head masks",
    "images": "RGB in [0, 1]; the cropped reference frames, s_ref first",
    "masks": "0 or 1; their head masks",
    "frame": "RGB in [0, 1]; the new frames",
    "angles_deg": "yaw, pitch, roll that the head has in them, degrees",
    "translation_m": "its translation, metres",
    "canonical_image": "in [0, 1], black outside the head",
    "canonical_mask": "in [0, 1]",
    "canonical_depth": "metres",
    "reference": "RGB in [0, 1]; s_ref",
    "reference_small": "RGB in [0, 1]; s_ref at the flow network's scale",
    "region_centre": "in [-1, 1], x and y",
    "region_frame": "2 x 2 matrices",
    "feature_full": "features of s_ref",
    "feature_half": "features of s_ref",
    "feature_quarter": "features of s_ref",
    "offset_deg": "degrees, added to the driving angles; 0: absolute mode",
    "offset_m": "metres, added to the driving translation; 0: absolute mode",
    "reference_deg": "yaw, pitch, roll of s_ref, degrees",
    "reference_m": "translation of s_ref, metres",
}
"""What the values of each input and output are."""


class FramePath(nn.Module):
    """`PerFrame` with the subject's tensors one by one."""

    inputs = ("driving", "mask", *SubjectState._fields)
    outputs = ("frame", "angles_deg", "translation_m")

    def __init__(self, path: PerFrame) -> None:
        super().__init__()
        self.path = path

    def forward(self, driving: Tensor, mask: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Driving frames `(B, 3, H, W)`, masks `(B, 1, H, W)` and the fields of `SubjectState` to `outputs`."""
        return self.path(driving, mask, SubjectState._make(state))


class SubjectPath(nn.Module):
    """`Head3D.subject` and what a frame needs of it; the first reference is s_ref."""

    inputs = ("images", "masks")
    outputs = (*SubjectState._fields[:-2], "reference_deg", "reference_m")

    def __init__(self, model: Head3D, path: PerFrame) -> None:
        super().__init__()
        self.networks = nn.ModuleList([model.depth, model.pose, model.canonical])  # so that their weights are found
        self.path, self._model = path, model

    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        """References `(N, 3, H, W)` and masks `(N, 1, H, W)` to `outputs`."""
        subject = self._model.subject(images, masks, 0)
        own = subject.reference_pose
        return (*self.path.state(subject, None)[:-2], own.angles_deg, own.translation_m)


class Exported(NamedTuple):
    """One path to export.

    Attributes:
        name: Of its file.
        module: The path.
        traced: Inputs it is traced with.
        judged: Others, on which the file is compared with it.
    """

    name: str
    module: FramePath | SubjectPath
    traced: tuple[Tensor, ...]
    judged: tuple[Tensor, ...]


@torch.no_grad()
def paths_of(model: Head3D, batch: int, references: int) -> list[Exported]:
    """Both paths with inputs, painted frames at the model's size.

    Args:
        model: On the CPU.
        batch: Frames at a time.
        references: N.
    """
    path = PerFrame(model, model.size_px, model.size_px)
    frames, heads = (part[::APART] for part in drawn_frames(2 * APART * (batch + references), model.size_px))
    images, masks = frames.permute(0, 3, 1, 2).float() / 255, heads[:, None].float()
    subject = SubjectPath(model, path).eval()
    chosen = [(images[i : i + references].clone(), masks[i : i + references].clone()) for i in (0, references)]
    turned = torch.tensor([[8.0, -4.0, 3.0]]), torch.tensor([[0.004, -0.003, 0.01]])
    driving = [
        (images[i : i + batch].clone(), masks[i : i + batch].clone(), *subject(*made)[:-2], *turned)
        for i, made in zip((2 * references, 2 * references + batch), chosen, strict=True)
    ]
    return [Exported("frame", FramePath(path).eval(), *driving), Exported("subject", subject, *chosen)]


def difference(expected: Sequence[Tensor], found: Sequence[np.ndarray]) -> dict[str, float]:
    """How far the first output (a picture) is from what it should be; and the largest difference of any.

    Args:
        expected: Of the model.
        found: Of the file.
    """
    apart = np.abs(found[0] - expected[0].numpy())
    return {
        "largest": float(apart.max()),
        "mean": float(apart.mean()),
        "share_above_half_a_level": float((apart > HALF_LEVEL).mean()),
    }


def _write_torch(one: Exported, file: Path) -> list[np.ndarray]:
    """Export by torch.export; the outputs of the file that was loaded again."""
    program = torch.export.export(one.module, one.traced, strict=False)
    torch.export.save(program, file)
    again = torch.export.load(file).module()
    return [part.numpy() for part in again(*one.judged)]


def _write_onnx(one: Exported, file: Path) -> list[np.ndarray]:
    """Export to ONNX; the outputs of the file by ONNX Runtime."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it and says less clearly so
    except ImportError as error:
        raise StageError(f"{error.name} is not installed; `pip install 'head3d[export]'` brings it") from None
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    program = torch.onnx.export(
        one.module,
        one.traced,
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
        input_names=list(one.module.inputs),
        output_names=list(one.module.outputs),
    )
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = {name: value.numpy() for name, value in zip(one.module.inputs, one.judged, strict=True)}
    wanted = {item.name for item in session.get_inputs()}
    return [
        np.asarray(part)
        for part in session.run(list(one.module.outputs), {key: given[key] for key in given if key in wanted})
    ]


WRITERS = {"torch": ("pt2", _write_torch), "onnx": ("onnx", _write_onnx)}


def interface(one: Exported, expected: Sequence[Tensor]) -> dict[str, Any]:
    """Names, shapes, types and ranges of a path's inputs and outputs, in their order."""

    def table(names: Sequence[str], values: Sequence[Tensor]) -> list[dict[str, Any]]:
        return [
            {"name": name, "shape": list(value.shape), "type": "float32", "values": RANGES[name]}
            for name, value in zip(names, values, strict=True)
        ]

    return {"inputs": table(one.module.inputs, one.traced), "outputs": table(one.module.outputs, expected)}


@torch.no_grad()
def export_model(
    checkpoints: Path, folder: Path, form: str, batch: int, references: int, parts: Sequence[str] = PARTS
) -> dict[str, Any]:
    """Write the paths of a trained model.

    Args:
        checkpoints: Folder with geometry/, canonical/ and fusion/.
        folder: `frame.*`, `subject.*`, `interface.json` and `USAGE.txt` go here.
        form: torch (`.pt2`) or onnx.
        batch: Frames at a time.
        references: N.
        parts: Which paths.

    Returns:
        For each file its size and how far its outputs are from the model's.

    Raises:
        StageError: `folder` cannot be written, the model is not trained, the format is not known or its packages are
            missing, or a file does not give the model's frames.
    """
    if form not in WRITERS:
        raise StageError(f"'{form}' is no format of a model; take {' or '.join(FORMATS)}")
    check_place(folder)
    ending, write = WRITERS[form]
    model = load_model(checkpoints, torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    described: dict[str, Any] = {"size_px": model.size_px, "batch": batch, "references": references}
    for one in (path for path in paths_of(model, batch, references) if path.name in parts):
        file = folder / f"{one.name}.{ending}"
        expected = one.module(*one.judged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own, about themselves
            apart = difference(expected, write(one, file))
        if not (apart["mean"] <= MOST_MEAN and apart["share_above_half_a_level"] <= MOST_ROUGH_SHARE):
            file.unlink()
            raise StageError(
                f"{file.name} does not give the model's pictures (mean difference {apart['mean']:.2g}, largest "
                f"{apart['largest']:.2g}) and was removed; with --format {FORMATS[form == FORMATS[0]]} it may"
            )
        figures[file.name] = {"megabytes": round(file.stat().st_size / 1e6, 2), **apart}
        described[file.name] = {**interface(one, expected), "difference_to_the_model": apart}
    (folder / "interface.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    (folder / "USAGE.txt").write_text(_readme(ending, described), encoding="utf-8")
    return figures


def export_state(checkpoints: Path, subject: Path, folder: Path, references: int) -> None:
    """Write `state.npz`: the tensors of a subject that a frame needs, with the offsets of the absolute mode.

    Args:
        checkpoints: Folder with geometry/, canonical/ and fusion/.
        subject: Video of the person.
        folder: Where it goes.
        references: N; a shorter video gives all its frames.

    Raises:
        StageError: `folder` cannot be written, the model is not trained, or the video cannot be used.
    """
    from tasks.animate import subject_state
    from tasks.prepared import prepare

    check_place(folder)
    model = load_model(checkpoints, torch.device("cpu"))
    ready = subject_state(model, prepare(subject, *load_preparation(checkpoints), "cpu"), references, "even")
    with torch.no_grad():
        state = PerFrame(model, *ready.state.reference.shape[-2:]).state(ready.state, None)._asdict()
    own = ready.state.reference_pose
    arrays: Mapping[str, Any] = {**state, "reference_deg": own.angles_deg, "reference_m": own.translation_m}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "state.npz", **{name: value.numpy() for name, value in arrays.items()})


def _readme(ending: str, described: Mapping[str, Any]) -> str:
    """What lies in the folder and how to run it."""
    kind = "NumPy arrays" if ending == "onnx" else "torch tensors"
    size, batch, references = (described[name] for name in ("size_px", "batch", "references"))
    return f"""Head3D, exported: {size} x {size} pixels, {batch} at a time, {references} references.

subject.{ending}  reference frames and head masks -> the subject's tensors, once (the first reference is s_ref)
frame.{ending}    driving frames, head masks and these tensors -> new frames
state.npz    the tensors of one subject, if one was named

interface.json names every input and output in order, with its shape and range. All are float32 ({kind}),
pictures are (batch, 3, height, width). Frames must be cropped as in training and their masks found by the same parser:
`head3d animate` does both; cropping and parsing are not in these files.

{USE[ending]}
Absolute mode: offset_deg and offset_m are 0. Relative mode: run the first driving frame with offsets of 0; then
offset_deg = reference_deg - angles_deg and offset_m = reference_m - translation_m.
"""


USE = {
    "onnx": """import numpy, onnxruntime

frame = onnxruntime.InferenceSession("frame.onnx")
state = numpy.load("state.npz")  # or the outputs of subject.onnx
inputs = {i.name: state[i.name] for i in frame.get_inputs() if i.name in state}
new, angles_deg, translation_m = frame.run(None, {"driving": driving, "mask": mask, **inputs})
""",
    "pt2": """import json, numpy, torch

frame = torch.export.load("frame.pt2").module()
state = numpy.load("state.npz")  # or the outputs of subject.pt2
names = [i["name"] for i in json.load(open("interface.json"))["frame.pt2"]["inputs"]]
inputs = [torch.from_numpy(state[name]) for name in names[2:]]
new, angles_deg, translation_m = frame(driving, mask, *inputs)
""",
}
"""How to run a frame's file, in Python."""
