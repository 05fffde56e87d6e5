"""The 19 classes of CelebAMask-HQ: ids, names and the colours in which pictures show them.

Left and right are the person's own, as in the data set: class 2 is the brow at the right of the picture. The head that
the networks see is a set of these ids (`parse.head_labels`); the presets take 1-13, 17 and 18, that is skin, brows,
eyes, glasses, ears, earring, nose, mouth, lips, hair and hat: a hat moves with the head, and tight curls are taken for
one now and then. Neck, necklace and cloth stay outside. Figures count the head without hats (`HEAD`).
"""

from __future__ import annotations

import numpy as np

BACKGROUND = 0
SKIN = 1
LEFT_BROW, RIGHT_BROW = 2, 3
LEFT_EYE, RIGHT_EYE = 4, 5
GLASSES = 6
LEFT_EAR, RIGHT_EAR = 7, 8
EARRING = 9
NOSE = 10
MOUTH = 11
UPPER_LIP, LOWER_LIP = 12, 13
NECK = 14
NECKLACE = 15
CLOTH = 16
HAIR = 17
HAT = 18
UNKNOWN = 255
"""Not parsed."""

HEAD = (*range(SKIN, LOWER_LIP + 1), HAIR)
"""The head without neck and hat, as figures count it."""
HEAD_AND_HAT = (*HEAD, HAT)
"""What hangs together as one head, whatever `parse.head_labels` is."""

NAMES = (
    "background",
    "skin",
    "left brow",
    "right brow",
    "left eye",
    "right eye",
    "glasses",
    "left ear",
    "right ear",
    "earring",
    "nose",
    "mouth",
    "upper lip",
    "lower lip",
    "neck",
    "necklace",
    "cloth",
    "hair",
    "hat",
)
"""Class names; the position is the id."""

MIRRORED = ((LEFT_BROW, RIGHT_BROW), (LEFT_EYE, RIGHT_EYE), (LEFT_EAR, RIGHT_EAR))
"""Classes that change places in a mirrored picture."""

COLOURS = np.array(
    [
        (0, 0, 0),
        (232, 184, 140),
        (140, 82, 30),
        (178, 112, 44),
        (20, 120, 220),
        (90, 200, 250),
        (120, 120, 120),
        (214, 120, 150),
        (238, 160, 190),
        (250, 230, 60),
        (200, 130, 80),
        (110, 0, 20),
        (230, 60, 70),
        (190, 30, 90),
        (90, 180, 90),
        (190, 230, 80),
        (40, 90, 150),
        (120, 60, 190),
        (240, 130, 20),
    ],
    dtype=np.uint8,
)
"""`(19, 3)` RGB of the classes."""

MIRRORED_IDS = [0, 1, 3, 2, 5, 4, 6, 8, 7, *range(9, 19)]
"""The id that each class has in a mirrored picture."""

UNKNOWN_COLOUR = np.array((255, 0, 255), dtype=np.uint8)
"""RGB of a pixel without a label."""


def colour_table() -> np.ndarray:
    """`(256, 3)` RGB for every value a label array can hold; what is no class is `UNKNOWN_COLOUR`."""
    table = np.tile(UNKNOWN_COLOUR, (256, 1))
    table[: len(COLOURS)] = COLOURS
    return table


def head_mask(class_ids: np.ndarray, head_labels: list[int]) -> np.ndarray:
    """0/1 mask of the classes that make up the head.

    Args:
        class_ids: u1, any shape; 255 (not parsed) is never head.
        head_labels: Class ids.

    Returns:
        u1, the same shape.
    """
    table = np.zeros(256, np.uint8)
    table[[label for label in head_labels if label != UNKNOWN]] = 1
    return table[class_ids]
