"""The report's section on failure cases (Fig. 7): the worst subjects by the figures behind the notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from models.config import Params
from tasks.generate import reference_frames
from tasks.generated import read_pairs, records
from tasks.methods import OURS
from tasks.notices import Finding, loose_share, mask_findings, measures_of, notices, side_finding, unseen_share
from tasks.paths import Paths
from tasks.report_examples import Picture, Stores, on_grey
from tasks.report_media import image_uri, outlined, shrink, strip
from tasks.stores import ClipArray, array, open_store


class Case(NamedTuple):
    """One subject.

    Attributes:
        pair: The first pair in which it is the subject.
        findings: Of its masks and its references.
    """

    pair: dict[str, Any]
    findings: list[Finding]

    @property
    def worst(self) -> Finding:
        """The figure that is nearest to its limit, or furthest beyond."""
        return max(self.findings, key=lambda found: found.severity)


def failure_section(params: Params, paths: Paths) -> dict[str, Any]:
    """What the template shows of failure cases.

    Args:
        params: All settings; `generate`, `notices`, `quality` and `report` are used.
        paths: Where the data lies.

    Returns:
        `cases`, the worst first, with pictures and sentences; how many subjects were looked at, and how many have a
        notice.
    """
    pairs, stores = read_pairs(paths), Stores(paths)
    measures = pd.read_parquet(paths.mask_table)
    angles = array(open_store(paths.geometry), "angles_deg")
    good = pairs[pairs["status"] == "ok"].drop_duplicates("subject_clip")
    cases = [Case(pair, _findings(pair, params, stores, measures, angles)) for pair in records(good)]
    cases.sort(key=lambda case: -case.worst.severity)
    return {
        "cases": [_shown(case, params, stores) for case in cases[: params.report.examples]],
        "subjects": len(cases),
        "noticed": sum(case.worst.severity > 1 for case in cases),
    }


def _chosen(pair: dict[str, Any], params: Params, stores: Stores) -> list[int]:
    config = params.generate
    found: list[int] = reference_frames(
        int(pair["reference_frame"]), stores.frames.shape[1], config.references, config.seed
    ).tolist()
    return found


def _canonical(pair: dict[str, Any], stores: Stores) -> Path:
    """The stored canonical head (RGBA)."""
    return stores.paths.generated / "canonical" / OURS / pair["setting"] / f"{pair['pair']}.png"


def _findings(
    pair: dict[str, Any], params: Params, stores: Stores, measures: pd.DataFrame, angles: ClipArray
) -> list[Finding]:
    row = int(pair["subject_row"])
    figures = measures_of(measures, pair["subject_clip"])
    figures["loose_share"] = loose_share(np.asarray(stores.head[row]))
    found = mask_findings(figures, params.quality, params.notices)
    with Image.open(_canonical(pair, stores)) as head:
        unseen = unseen_share(np.asarray(head.getchannel("A")) / 255)
    yaw = np.asarray(angles[row])[_chosen(pair, params, stores), 0]
    return [*found, side_finding(yaw, unseen, params.notices)]


def _shown(case: Case, params: Params, stores: Stores) -> dict[str, Any]:
    """Pictures and sentences of a case."""
    pair, row = case.pair, int(case.pair["subject_row"])
    frames, head = np.asarray(stores.frames[row]), np.asarray(stores.head[row])
    at, canonical = _chosen(pair, params, stores), image_uri(shrink(on_grey(_canonical(pair, stores))))
    said = notices(case.findings, "subject video")
    return {
        "title": f"{pair['subject_identity']}, clip {pair['subject_clip']}",
        "sentences": said or [f"Within every limit; nearest to one: {case.worst.measured}"],
        "noticed": bool(said),
        "singles": [Picture("Canonical head", f"canonical head of {pair['subject_clip']}", canonical)],
        "strips": [
            Picture("References", "the references of the subject", strip(frames, at)),
            Picture("Their head masks", "references, the head outlined", strip(outlined(frames, head), at)),
        ],
    }
