"""Fig. 7: who gets a notice, what it says, and that the commands say it and still write their file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from flows.cli import app
from flows.preset_files import preset_text
from models.pose_net import HeadPose, PoseNetwork
from tasks.faces import Faces, FrameTrack, Looks
from tasks.notices import (
    AngleRange,
    loose_share,
    lost_finding,
    mask_findings,
    notices,
    pose_findings,
    side_finding,
    trained_range,
    unseen_share,
)
from tasks.paths import Paths
from tasks.prepared import lost_share
from tasks.report_failures import failure_section
from tasks.report_files import Shelf
from tasks.stores import geometry_arrays, open_or_create, write_rows
from tasks.video import iterate_frames, write_video
from tests.tasks.factory import make_project
from tests.tasks.rendered import rendered_clip
from tests.tasks.test_training import settings
from tests.tasks.untrained import write_checkpoints

QUALITY, LIMITS = settings().quality, settings().notices
GOOD = {"border_share": 0.0, "head_area": 0.3, "sharpness": 0.3, "mask_jump": 0.05, "loose_share": 0.0}
Y, X = np.mgrid[0:64, 0:64]
ROUND = (((X - 31.5) ** 2 + (Y - 31.5) ** 2) < 20**2).astype(float)


def test_good_masks_get_no_notice():
    assert notices(mask_findings(GOOD, QUALITY, LIMITS), "subject video") == []


@pytest.mark.parametrize(
    ("measure", "value", "says"),
    [
        ("border_share", 0.41, "subject video: the head touches 41% of the frame's edge (limit 20%); give"),
        ("head_area", 0.05, "the head takes 5.0% of the frame (limit 10%)"),
        ("sharpness", 0.01, "sharpness 0.010 (limit 0.04)"),
        ("mask_jump", 0.6, "changes by 60% from one frame to the next (limit 35%)"),
        ("loose_share", 0.2, "in the worst frame 20% of the head mask hangs together with nothing else (limit 5%)"),
    ],
)
def test_a_bad_mask_is_named_with_its_figure_and_limit(measure: str, value: float, says: str):
    said = notices(mask_findings({**GOOD, measure: value}, QUALITY, LIMITS), "subject video")
    assert len(said) == 1
    assert says in said[0]


def test_what_was_not_measured_is_not_judged_and_the_worst_comes_first():
    assert mask_findings({"border_share": float("nan")}, QUALITY, LIMITS) == []
    said = notices(mask_findings({**GOOD, "mask_jump": 0.5, "border_share": 0.9}, QUALITY, LIMITS), "x")
    assert ["edge" in text for text in said] == [True, False]


def test_loose_parts_are_counted_in_the_worst_frame():
    head = np.zeros((3, 20, 20), np.uint8)
    head[:, 2:12, 2:12] = 1
    head[1, 15:20, 15:20] = 1
    assert loose_share(head) == pytest.approx(25 / 125)
    assert loose_share(head[:1]) == 0
    assert loose_share(np.zeros((1, 20, 20), np.uint8)) == 0


def test_half_a_head_is_unseen_a_whole_one_is_not():
    assert unseen_share(ROUND) == 0
    assert unseen_share(ROUND * (X > 31)) == 1
    part = ROUND * (X > 20)
    assert unseen_share(part) == pytest.approx((part * (1 - part[:, ::-1])).sum() / part.sum())
    assert unseen_share(np.zeros((8, 8))) == 1


@pytest.mark.parametrize(
    ("yaw", "unseen", "noticed"),
    [
        ([31, 36, 44], 0.0, True),
        ([-44, -31], 0.0, True),
        ([-20, 5, 30], 0.5, False),  # both sides: a lopsided mask is hair
        ([0, 2, 4], 0.5, False),  # as good as frontal
        ([9, 12], 0.2, True),
        ([9, 12], 0.05, False),
        ([28], 0.0, True),
    ],
)
def test_one_side_is_noticed_by_its_angles_or_by_what_is_missing(yaw: list[float], unseen: float, noticed: bool):
    assert bool(notices([side_finding(np.array(yaw, float), unseen, LIMITS)], "subject video")) == noticed


def test_the_sentence_about_one_side_says_which_side_is_missing():
    right = side_finding(np.array([31.0, 44.0]), 0.3, LIMITS)
    assert "the yaw of the 2 references spans 31 to 44 degrees (limit: one within 15 of 0)" in right.measured
    assert "none shows 30% of the mirrored head (limit 10%)" in right.measured
    assert "turned to the right of the picture" in right.advice  # positive yaw looks to the left
    assert "turned to the left of the picture" in side_finding(np.array([-31.0]), 0.3, LIMITS).advice


def test_turns_that_training_never_showed_and_the_bound_are_noticed():
    trained = AngleRange(np.array([-30.0, -10, -10]), np.array([30.0, 10, 10]))
    calm = np.zeros((20, 3))
    assert notices(pose_findings(calm, trained, 60, LIMITS), "driving video") == []
    wide = calm.copy()
    wide[:5, 0] = 45
    (said,) = notices(pose_findings(wide, trained, 60, LIMITS), "driving video")
    assert "in 5 of 20 driving frames (limit 10%)" in said
    assert "above all its yaw: 0 to 45 degrees, in 99.8% of the training frames -30 to 30" in said
    assert notices(pose_findings(wide, None, 60, LIMITS), "driving video") == []
    wide[:1, 1] = -59.5
    assert "1 of 20 driving frames the head's pose is at the bound of 60 degrees" in " ".join(
        notices(pose_findings(wide, None, 60, LIMITS), "driving video")
    )


def test_the_trained_range_is_that_of_the_training_clips(tmp_path: Path):
    paths = Paths(tmp_path)
    assert trained_range(tmp_path) is None
    rows = [{"clip": f"c{r}", "row": r, "status": "ok", "split": "test" if r == 2 else "train"} for r in range(5)]
    pd.DataFrame(rows).to_parquet(paths.clip_table)
    store = open_or_create(paths.geometry, geometry_arrays(5, 8), 4, 4, "f")
    angles = np.zeros((4, 5, 3), np.float32)
    angles[0, :, 0], angles[1, :, 0], angles[2], angles[3] = 20, -10, 50, 70
    # row 3 was never finished, and row 4 is of a clip that came after stage 1
    write_rows(store, 0, {"angles_deg": angles}, np.array([1, 1, 1, 0], np.uint8))
    found = trained_range(tmp_path)
    assert found is not None
    np.testing.assert_allclose([found.low[0], found.high[0], found.high[1]], [-10, 20, 0], atol=0.1)


def test_looks_without_the_face_are_lost():
    box, away = np.array([10.0, 10, 20, 20]), np.array([80.0, 80, 90, 90])
    faces = [Faces(np.array(boxes).reshape(-1, 4), np.zeros((len(boxes), 5, 2)), np.ones(len(boxes))) for boxes in (
        [box], [], [box, away], [away], [box],
    )]  # fmt: skip
    looks = Looks(4, 20, faces)
    track = FrameTrack(0, np.repeat(box[None], 13, axis=0), np.zeros((13, 5, 2)), np.ones(13))
    assert lost_share(looks, track) == pytest.approx(3 / 5)  # none, another face, after the track
    (said,) = notices([lost_finding(0.6, 0.8)], "driving video")
    assert "not found in 60% of the frames looked at (limit 20%)" in said
    assert notices([lost_finding(0.1, 0.8)], "driving video") == []


def test_the_report_shows_the_worst_subject_first_with_its_reason(tmp_path: Path):
    calm = {"max_mask_jump": 1.0, "max_border_share": 1.0, "min_sharpness": 0.0}  # the factory's heads jump
    made = make_project(tmp_path, people=3, frames=8, cross=3, videos=False, quality=calm)
    section = failure_section(made.params, made.paths, Shelf(tmp_path / "report", 8.0))
    assert (section["subjects"], section["noticed"]) == (3, 1)
    worst = section["cases"][0]
    assert worst["title"] == "person_00, clip demo_00_0"  # the factory turns it to one side
    assert any("only one side of the head is shown" in text for text in worst["sentences"])
    assert [picture.caption for picture in worst["strips"]] == ["References", "Their head masks", "Head3D with it"]
    assert {row["name"]: row["count"] for row in section["flags"]}["blurred"] == 0  # the limit is off
    assert (tmp_path / "report" / section["worst"]).is_file()
    assert section["cases"][1]["sentences"][0].startswith("Within every limit; nearest to one: ")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an untrained model and a video of a person."""
    root = tmp_path_factory.mktemp("notices")
    shutil.copy(Path(__file__).parents[2] / "dvc.yaml", root)
    (root / "params.yaml").write_text(preset_text("demo"), encoding="utf-8")
    params = settings(parse={"parser": "embedded"})
    write_checkpoints(root / "data" / "checkpoints", params)
    write_video(root / "person.mp4", np.repeat(rendered_clip(4, 4, 160).frames, 2, axis=0), 25.0)
    return root


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(args=list(words))
    return int(ended.value.code or 0)


def always(monkeypatch: pytest.MonkeyPatch, yaw: float) -> None:
    """F_P finds this yaw in every frame: an untrained one knows no side."""

    def forward(_network: PoseNetwork, heads: torch.Tensor) -> HeadPose:
        angles = torch.zeros(len(heads), 3)
        angles[:, 0] = yaw
        return HeadPose(angles, torch.zeros(len(heads), 3))

    monkeypatch.setattr(PoseNetwork, "forward", forward)


def test_a_subject_seen_from_one_side_is_said_and_the_head_still_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(project)
    for yaw, noticed in ((28.0, True), (0.0, False)):
        always(monkeypatch, yaw)
        assert call("canonical", "person.mp4", "-o", f"{yaw:.0f}.png", "--references", "3") == 0
        told = capsys.readouterr()
        assert ("Notice: subject video: only one side of the head is shown" in told.err) == noticed
        assert "pixels: 48 x 48" in told.out
        assert "only one side" not in told.out
        assert Image.open(project / f"{yaw:.0f}.png").size == (48, 48)


def test_animate_and_attention_name_a_driving_pose_at_the_bound(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(project)
    always(monkeypatch, 59.9)
    assert call("animate", "person.mp4", "person.mp4", "-o", "out.mp4", "--references", "3") == 0
    assert "in 8 of 8 driving frames the head's pose is at the bound of 60 degrees" in capsys.readouterr().err
    assert len(np.concatenate(list(iterate_frames(project / "out.mp4")))) == 8
    words = ["person.mp4", "person.mp4", "-o", "sheet.png", "--frames", "2", "--references", "3"]
    assert call("attention", *words) == 0
    told = capsys.readouterr()
    assert "in 2 of 2 driving frames" in told.err
    shares = [float(line.split(": ")[1]) for line in told.out.splitlines() if "_in_head" in line]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert Image.open(project / "sheet.png").width > 11 * 128
    assert call("attention", "person.mp4", "person.mp4", "-o", "sheet.jpg") == 1
    assert "sheet.jpg: the sheet is written as .png" in capsys.readouterr().err
