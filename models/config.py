"""Every setting of the pipeline, typed and strict; `params.yaml` is the one place where the values stand.

No field has a default here: a preset is a whole file, so a value is never hidden in code. An unknown key, a missing key
or a value of the wrong type or range is a `ConfigError` that names the key and the nearest one that exists.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.config_rules import broken_rules

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
CheckpointSeconds = Annotated[float, Field(gt=0, le=120)]

Initial = Literal["random", "pretrained", "if_present"]
"""What a network starts from; `if_present`: pretrained where the file is at hand, and the stage says which it was."""

ClipsOnGpu = Literal["auto", "always", "never"]
"""Whether the training clips lie on the GPU; `auto`: if they take at most half of its free memory."""


class ConfigError(ValueError):
    """A setting that does not exist, is missing, or has a value that cannot be used; the text says what to change."""


class Section(BaseModel):
    """A frozen, strict group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Runtime(Section):
    """How to run on this machine. Not a DVC dependency: nothing here changes a result."""

    device: str  # auto | cpu | cuda | cuda:N
    devices: Positive  # that train together: GPUs of this machine (device: cpu: processes); they share every batch
    sync_batch_norm: bool  # GPUs that train together share their batch norms' statistics: as one GPU with the batch
    clips_on_gpu: ClipsOnGpu  # else they stay in the host's memory, or in a file in data/ where that is too small
    cuda_graphs: bool  # on a GPU, record a training step once and replay it
    compile: bool  # on a GPU, let torch.compile fuse the losses' kernels: minutes at the start, then faster steps
    scheduler: str  # local: processes of this machine; tcp://host:port: a Dask cluster that sees the same folders
    workers: Positive  # worker processes of crop and parse (scheduler: local)
    stores: str  # where new Zarr stores go: empty, the data folder; or s3://bucket/folder (any fsspec address)
    video_deadline_s: PositiveFloat  # a video that takes longer is killed and refused (reason: deadline)
    checkpoint_every_s: CheckpointSeconds  # a killed training run loses at most this much


class Demo(Section):
    """The embedded renderer of talking heads."""

    people: Positive
    frames: Positive
    size_px: Positive
    fps: Positive
    max_yaw_deg: NonNegativeFloat


class Folder(Section):
    """Any directory tree of videos."""

    path: str
    limit: NonNegative  # 0: all
    identity_pattern: str  # first group of this pattern on the file name; no match: parent folder or file stem


class VoxCeleb(Section):
    """VoxCeleb by FOMM's metadata list: one row a clip, with its person, section and box."""

    metadata: str  # path or URL of the list (CSV)
    videos: str  # folder of videos or official crops one already has; empty: download
    train_clips: NonNegative
    test_clips: NonNegative
    limit: NonNegative  # 0: all of the chosen; else only the first of them
    downloads: Positive  # at a time
    requests_per_minute: PositiveFloat  # videos asked for, all downloads together
    attempts: Positive  # tries of a download that fails without a verdict
    max_height_px: Positive  # of the downloaded stream
    cookies: str  # Netscape cookie file of a browser session; empty: none


class FaceForensics(Section):
    """The original sequences of FaceForensics or FaceForensics++, from a local folder (a form is required)."""

    path: str
    compression: Literal["any", "raw", "c0", "c23", "c40"]
    test_videos: NonNegative


class Acquire(Section):
    """Where the videos come from, and who is kept for testing."""

    sources: list[Literal["demo", "folder", "voxceleb", "faceforensics"]]
    demo: Demo
    folder: Folder
    voxceleb: VoxCeleb
    faceforensics: FaceForensics
    test_fraction: Fraction  # of the people of demo and folder
    seed: NonNegative


class Crop(Section):
    """Raw video -> square face crops of `clip_frames` consecutive frames."""

    size_px: Positive
    clip_frames: Positive
    clips_per_video: Positive  # at most, not overlapping; self-reconstruction needs two of a test video
    train_clips_per_video: Positive  # the same for training videos
    max_seconds: PositiveFloat  # only this much of a video's start is read
    detect_every_frames: Positive
    detect_long_side_px: Positive
    min_confidence: Fraction
    min_detected_fraction: Fraction  # of the frames looked at must show the face
    min_face_px: Positive  # in the source video
    second_face_ratio: Fraction  # another face at least this large (relative to the first): refused
    margin: NonNegativeFloat  # the union of the face boxes grows by this share of its size on every side
    shard_clips: Positive


class Parse(Section):
    """Head masks: 19 CelebAMask-HQ classes per pixel."""

    parser: Literal["embedded", "bisenet", "grabcut"]  # shipped network; public BiSeNet (its file, 512 px); no weights
    work_px: Positive  # side at which a frame is parsed; networks take the nearest multiple of 32
    grabcut_iterations: Positive
    mirror: bool  # networks: average with the mirrored picture; twice the time, a little better
    smooth_frames: Positive  # odd window of the temporal smoothing; 1: none
    head_labels: list[NonNegative]  # classes that make up the head


class Quality(Section):
    """What a clip must be to be trained on; each limit has a flag in masks.parquet. 1.0 (or 0.0) switches one off."""

    max_border_share: Fraction  # border: of the frame's edge that the head touches (shoulder side excepted)
    min_head_area: Fraction  # tiny: mean share of the frame
    min_sharpness: NonNegativeFloat  # blurred: see tasks/quality.py
    max_mask_jump: Fraction  # jump: largest 1 - IoU of successive head masks
    max_least_yaw_deg: NonNegativeFloat  # single_sided: every frame is turned further than this to one side


class Camera(Section):
    """Perspective camera of Eq. 2 and the bounds on depth and pose."""

    fov_deg: PositiveFloat
    depth_min_m: PositiveFloat
    depth_max_m: PositiveFloat
    border_depth_m: PositiveFloat
    max_angle_deg: PositiveFloat
    max_translation_m: PositiveFloat


class DepthNet(Section):
    """F_D."""

    encoder: Literal["mobilenet_v2", "slim"]
    initial: Initial  # pretrained: ImageNet's weights, for mobilenet_v2
    width: Positive  # channels of the decoder's first block


class PoseNet(Section):
    """F_P."""

    backbone: Literal["slim", "resnet18", "resnet50"]
    initial: Initial  # pretrained: HopeNet's weights, for resnet50
    input_px: Positive


class Optim(Section):
    """What every training stage has in common."""

    batch_videos: Positive
    references: Positive  # N
    span: Literal["clip", "video"]  # where a sample's N + 1 frames come from: one clip, or all clips of its video
    steps: Positive
    lr_drop_step: Positive  # the learning rates drop by 0.1 here
    log_every_steps: Positive
    sheet_every_steps: NonNegative  # a picture of what the networks do now, in the checkpoint folder; 0: none
    average: Fraction  # the weights that are kept are a running average: this much of it stays in a step (0: none)
    precision: Literal["float32", "bfloat16"]  # of the networks; geometry, losses and weights stay float32
    clip_norm: NonNegativeFloat  # a longer gradient is shortened to this (0: never)
    seed: NonNegative


class Geometry(Section):
    """Stage 1 (Sec. 3.1): F_D and F_P, Eq. 4."""

    camera: Camera
    depth_net: DepthNet
    pose_net: PoseNet
    train: Optim
    lr_depth: PositiveFloat
    lr_pose: PositiveFloat
    lambda_sym: NonNegativeFloat
    lambda_depth: NonNegativeFloat
    bootstrap: Literal["landmarks", "rendered", "both"]  # known poses and depths that stage 1 starts from
    bootstrap_steps: NonNegative  # on them alone, before the steps of Eq. 4
    bin_weight: NonNegativeFloat  # cross-entropy of F_P's bins beside the distance to a known pose
    rendered_people: NonNegative  # drawn when the stage starts, 40 poses each
    rendered_batch: NonNegative  # of their images in a batch of the start
    rendered_beside: NonNegative  # of their images beside a batch of Eq. 4
    ellipsoid_share: NonNegativeFloat  # weight of the ellipsoid in real masks beside rendered depth
    lr_bootstrap: PositiveFloat
    lambda_pose_prior: NonNegativeFloat  # known poses beside Eq. 4: they hold the rotation's amplitude
    lambda_depth_prior: NonNegativeFloat  # known depths beside Eq. 4


class CoderNet(Section):
    """Image encoder and decoder after Johnson et al. with two downsampling blocks."""

    width: Positive  # channels of the first convolution (paper scale: 64)
    residual_blocks: NonNegative


class Canonical(Section):
    """Stage 2 (Sec. 3.2): E_H, ConvLSTM, Omega_H, Eq. 6."""

    net: CoderNet
    train: Optim
    lr: PositiveFloat


class PartNet(Section):
    """A second region predictor, for the regions that `fusion.parts_weight` holds to parts of the face."""

    regions: NonNegative  # so many of flow_net.regions, the first: 8, or 0 for none
    scale: PositiveFloat  # image scale at which it works: an eye is open by a few pixels
    width: Positive
    blocks: Positive


class FlowNet(Section):
    """Phi: region predictors and dense flow after MRAA."""

    regions: Positive
    parts: PartNet
    scale: PositiveFloat  # image scale at which Phi works
    width: Positive
    max_width: Positive
    blocks: Positive
    temperature: PositiveFloat


class Perceptual(Section):
    """Pyramid of feature distances (L_rec of Eq. 8)."""

    backbone: Literal["vgg19", "vgg19_random", "slim_random", "head_parser"]
    layer_weights: list[NonNegativeFloat]  # relu1_1 ... relu5_1
    scales: list[PositiveFloat]
    pixel_weight: NonNegativeFloat  # L1 on pixels beside it


class Fusion(Section):
    """Stage 3 (Sec. 3.3): E_F, Phi, Omega_F, Eq. 7 and 8."""

    net: CoderNet
    flow_net: FlowNet
    perceptual: Perceptual
    face_weight: NonNegativeFloat  # L1 about eyes and mouth, beside L_rec, which hardly sees them
    parts_steps: NonNegative  # before Eq. 8 these steps train only where those regions are
    parts_weight: NonNegativeFloat  # flow_net.parts is held to eyes, brows, nose and lips, and moves them
    equivariance_weight: NonNegativeFloat
    attention_weight: NonNegativeFloat  # holds the attention's logits together, so that no map is given up for good
    regions_weight: NonNegativeFloat  # keeps Phi's free regions apart and where they can still move
    heads_per_clip: NonNegative  # canonical heads made beforehand, each of other references; 0: made in every step
    train: Optim
    lr: PositiveFloat
    without_head_steps: NonNegative  # of a second network without x_hat_dri (Table 3, no_driving_head); 0: none


MethodName = Literal[
    "head3d", "head3d_n1", "head3d_n3", "head3d_n10", "mean_canonical", "no_driving_head", "copy_reference"
]
"""What can be generated; tasks/methods.py says what each of them is."""


class Generate(Section):
    """Self-reconstruction and cross-identity videos (Sec. 4.1)."""

    methods: list[str]  # of MethodName, and names of `external`
    external: dict[str, str]  # method -> folder of videos made elsewhere, named as in generated/pairs.csv
    self_pairs: NonNegative  # at most; 0: as many as the test set has
    cross_pairs: NonNegative  # of every dataset
    references: Positive
    mode: Literal["absolute", "relative"]
    seed: NonNegative


class Evaluate(Section):
    """Table 1 and its trivial baseline."""

    lpips_backbone: Literal["alex", "vgg", "squeeze"]
    lpips_weights: str  # file with the backbone's ImageNet weights; empty: the registry's place
    frame_stride: Positive  # LPIPS looks at every n-th frame


class Study(Section):
    """Paired user study (Sec. 4.1)."""

    raters: Positive
    pairs_per_method: Positive
    repeats: NonNegative
    seed: NonNegative


class Notices(Section):
    """When a result is not to be trusted (Fig. 7), beside the limits of `quality`; nothing is refused for it."""

    max_reference_yaw_deg: PositiveFloat  # every reference is turned further than this to one side
    max_unseen_share: Fraction  # of the mirrored canonical head that no reference shows, if all are turned to one side
    max_loose_share: Fraction  # of the head mask that hangs together with nothing else, in the worst frame
    max_untrained_share: Fraction  # of driving frames (or views) turned further than nearly all training frames


class Report(Section):
    """The HTML report."""

    examples: Positive  # sheets and videos of each setting
    frames_per_sheet: Positive


class Params(Section):
    """The whole of params.yaml."""

    runtime: Runtime
    acquire: Acquire
    crop: Crop
    parse: Parse
    quality: Quality
    geometry: Geometry
    canonical: Canonical
    fusion: Fusion
    generate: Generate
    evaluate: Evaluate
    study: Study
    notices: Notices
    report: Report


SectionT = TypeVar("SectionT", bound=BaseModel)


def _field_names(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Names of the settings that stand beside the one at `path` in `model`."""
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    lines = []
    for item in error.errors():
        path = item["loc"]
        key = ".".join(str(part) for part in path) or "(top level)"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), _field_names(model, path), n=1, cutoff=0.4)
            parent = ".".join(str(part) for part in path[:-1])
            hint = f"; did you mean '{'.'.join(filter(None, [parent, near[0]]))}'?" if near else ""
            lines.append(f"'{key}' is not a setting{hint}")
        elif item["type"] == "missing":
            hint = "; `head3d preset demo` writes a complete file" if model is Params else ""  # a checkpoint needs none
            lines.append(f"'{key}' is missing{hint}")
        else:
            lines.append(f"'{key}' = {item['input']!r}: {item['msg'][:1].lower()}{item['msg'][1:]}")
    return f"{where}: " + "; ".join(lines)


def build(model: type[SectionT], values: Any, where: str = "params") -> SectionT:
    """Check `values` against `model`.

    Args:
        model: A section class of this module.
        values: Nested dict, as read from YAML or JSON.
        where: What to call the source in an error.

    Returns:
        The frozen section.

    Raises:
        ConfigError: A key is unknown, missing, or its value does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, where)) from None


def load_params(path: str | Path = "params.yaml", complete: bool = True) -> Params:
    """Read and check a whole params file.

    Args:
        path: The file.
        complete: Also check what ties several settings together. A bench of a preset's file does not: it needs none of
            the videos whose folder the user has yet to name.

    Raises:
        ConfigError: The file is missing, is not YAML, or holds a setting that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; `head3d preset demo` writes one")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    params = build(Params, values, str(path))
    for broken in broken_rules(params) if complete else ():
        raise ConfigError(f"{path}: {broken}")
    return params
