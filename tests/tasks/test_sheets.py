"""Pictures of labels and masks, at known pixels."""

from __future__ import annotations

import numpy as np
import pytest

from tasks import labels, sheets


def test_label_colours() -> None:
    class_ids = np.array([[[labels.SKIN, labels.HAIR], [labels.BACKGROUND, 255]]], np.uint8)
    coloured = sheets.colour_labels(class_ids)
    assert coloured.shape == (1, 2, 2, 3)
    assert coloured[0, 0, 0].tolist() == labels.COLOURS[labels.SKIN].tolist()
    assert coloured[0, 0, 1].tolist() == labels.COLOURS[labels.HAIR].tolist()
    assert coloured[0, 1, 0].tolist() == [0, 0, 0]
    assert coloured[0, 1, 1].tolist() == [255, 0, 255]


def test_colours_can_be_told_apart() -> None:
    assert len(labels.COLOURS) == len(labels.NAMES) == 19
    distance = np.abs(labels.COLOURS[:, None].astype(int) - labels.COLOURS[None]).sum(axis=2)
    assert distance[~np.eye(19, dtype=bool)].min() > 60


def test_outline_is_the_inner_edge() -> None:
    frame = np.full((7, 7, 3), 9, np.uint8)
    mask = np.zeros((7, 7), np.uint8)
    mask[1:6, 1:6] = 1
    mask[3, 3] = 0
    drawn = sheets.draw_outline(frame, mask, (1, 2, 3))
    edge = (drawn == (1, 2, 3)).all(axis=2)
    expected = np.zeros((7, 7), bool)
    expected[1:6, 1:6] = True
    expected[[2, 2, 4, 4], [2, 4, 2, 4]] = False  # inside, and not beside the hole
    expected[3, 3] = False
    assert np.array_equal(edge, expected)
    assert (frame == 9).all()


def test_outline_reaches_the_border() -> None:
    drawn = sheets.draw_outline(np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.uint8))
    assert (drawn[0] == sheets.OUTLINE_RGB).all()
    assert (drawn[1:3, 1:3] == 0).all()


def test_contact_sheet_places_images_and_captions() -> None:
    red, blue = (np.full((20, 60, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    sheet = sheets.contact_sheet([[red, blue], [blue]], ["first", ""])
    gap, text = sheets.GAP_PX, sheets.TEXT_PX
    assert sheet.shape == (gap + text + 2 * (20 + gap), gap + 2 * (60 + gap), 3)
    top = gap + text
    assert (sheet[top : top + 20, gap : gap + 60] == (255, 0, 0)).all()
    assert (sheet[top : top + 20, 2 * gap + 60 : 2 * gap + 120] == (0, 0, 255)).all()
    second = top + 20 + gap
    assert (sheet[second : second + 20, gap : gap + 60] == (0, 0, 255)).all()
    assert (sheet[second : second + 20, 2 * gap + 60 :] == sheets.PAPER_RGB).all()
    assert sheet[gap:top].min() < 128  # something is written


def test_contact_sheet_refuses_images_of_two_sizes() -> None:
    with pytest.raises(ValueError, match="one size"):
        sheets.contact_sheet([[np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)]], [""])


def test_text_that_is_too_long_stays_in_its_line() -> None:
    line = sheets.text_line("a caption that is far longer than the line is wide", 80)
    assert line.shape == (sheets.TEXT_PX, 80, 3)
    assert (line[:, -2:] == sheets.PAPER_RGB).all()
    assert line.min() < 128


def test_enlarge_repeats_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = sheets.enlarge(image, 5)
    assert large.shape == (6, 6, 3)
    assert (large[:3, :3] == image[0, 0]).all()
    assert (large[3:, 3:] == image[1, 1]).all()


def test_legend_shows_the_colours_of_its_classes() -> None:
    shown = sheets.legend([labels.HAIR, labels.CLOTH], 160)
    assert shown.shape == (2 * sheets.TEXT_PX, 160, 3)
    assert shown[9, 9].tolist() == labels.COLOURS[labels.HAIR].tolist()
    assert shown[sheets.TEXT_PX + 9, 9].tolist() == labels.COLOURS[labels.CLOTH].tolist()
