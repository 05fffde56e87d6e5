"""Whether expressions follow: on painted probabilities, whose areas are known, and by the command on a finished run."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from flows.cli import app
from tasks import expressions
from tasks.expressions import MEASURES, Follow, follow, read_expressions, summarised
from tasks.labels import LEFT_EYE, LOWER_LIP, MIRRORED_IDS, MOUTH, SKIN, UPPER_LIP
from tests.conftest import Project

SIDE = 32


class PaintedParser:
    """Reads classes from the red channel; of one class in a mirrored picture it knows which side it is on."""

    def side(self, work_px: int) -> int:
        return SIDE

    def batch_frames(self, side: int) -> int:
        return 4

    def probabilities(self, images: np.ndarray) -> torch.Tensor:
        classes = torch.from_numpy(images[..., 0].astype(np.int64))
        if images[0, 0, -1, 0] == 255 or images[0, 0, 0, 0] != 255:  # the mark at the left has come to the right
            classes = torch.tensor([*MIRRORED_IDS, *range(19, 256)])[classes]
        classes = torch.where(classes == 255, 0, classes)
        return torch.nn.functional.one_hot(classes, 19).float()


def painted(openings: list[int], eyes: list[int]) -> np.ndarray:
    """Frames of a face whose mouth is so many rows open and whose left eye so many rows high."""
    frames = np.zeros((len(openings), SIDE, SIDE, 3), np.uint8)
    for frame, rows, lid in zip(frames, openings, eyes, strict=True):
        frame[4:30, 6:26, 0] = SKIN
        frame[8 : 8 + lid, 18:23, 0] = LEFT_EYE
        frame[18, 10:22, 0] = UPPER_LIP
        frame[19 : 19 + rows, 10:22, 0] = MOUTH
        frame[19 + rows, 10:22, 0] = LOWER_LIP
        frame[0, 0, 0] = 255
    return frames


def test_the_areas_are_those_that_were_painted_in_both_readings():
    found = read_expressions(painted([0, 3, 6], [2, 2, 1]), PaintedParser())  # type: ignore[arg-type]
    assert found.shape == (2, 3, 3)
    head = 26 * 20
    np.testing.assert_allclose(found[0, :, 0], np.array([0, 36, 72]) / head, atol=1e-9)
    np.testing.assert_allclose(found[0, :, 2], np.array([10, 10, 5]) / head, atol=1e-9)
    rows = np.array([18, *range(19, 25), 25])
    assert found[0, 2, 1] == pytest.approx(rows.std() / np.sqrt(head))
    np.testing.assert_allclose(found[1], found[0], atol=1e-9)


def test_an_output_that_follows_by_half_and_one_that_does_not_move():
    opening = [0, 2, 4, 6, 4, 2, 0, 2]
    parser = PaintedParser()
    driving = read_expressions(painted(opening, [2] * 8), parser)  # type: ignore[arg-type]
    half = read_expressions(painted([rows // 2 for rows in opening], [2] * 8), parser)  # type: ignore[arg-type]
    found = follow(driving, half)
    assert found["mouth"] is not None
    assert found["mouth"].correlation == pytest.approx(1.0)
    assert found["mouth"].ratio == pytest.approx(0.5)
    assert found["lips"] is not None
    assert found["lips"].correlation > 0.97
    assert found["eyes"] is None  # the driving eyes stand still
    still = follow(driving, np.repeat(half[:, :1], 8, axis=1))
    assert still["mouth"] == Follow(0.0, 0.0)
    turned = painted([6 - rows for rows in opening], [2] * 8)
    against = follow(driving, read_expressions(turned, parser))  # type: ignore[arg-type]
    assert against["mouth"] is not None
    assert against["mouth"].correlation == pytest.approx(-1.0)


def test_a_driving_video_that_is_read_differently_twice_says_nothing():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.1, (2, 40, 3))
    assert list(follow(noise, noise).values()) == [None] * 3


def test_means_and_their_errors():
    rows = pd.DataFrame(
        {"method": "head3d", "setting": "self", "measure": "mouth", "correlation": [0.2, 0.6], "ratio": [1.0, 0.5]}
    )
    one = summarised(rows).iloc[0]
    assert (one["videos"], one["correlation"], one["ratio"]) == (2, pytest.approx(0.4), 0.75)
    assert one["standard_error"] == pytest.approx(0.2)


def test_the_command_reads_a_finished_run(
    tiny_project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tiny_project.root)
    monkeypatch.setattr(expressions, "MOVES", dict.fromkeys(MEASURES, 0.0))
    monkeypatch.setattr(expressions, "AGREE", -2.0)  # people of 32 pixels are hardly read alike
    words = ["check-expressions", "--json", "--method", "head3d", "--method", "copy_reference"]
    with pytest.raises(SystemExit) as ended:
        app(args=words)
    assert ended.value.code in (0, None)
    rows = {(row["method"], row["setting"], row["measure"]): row for row in json.loads(capsys.readouterr().out)}
    assert ("head3d", "self", "mouth") in rows
    assert ("head3d", "cross", "lips") in rows
    assert abs(rows["copy_reference", "self", "mouth"]["correlation"]) < 1e-6
    with pytest.raises(SystemExit) as refused:
        app(args=["check-expressions", "--method", "fomm"])
    assert refused.value.code == 2
