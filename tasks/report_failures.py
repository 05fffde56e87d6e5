"""The report's section on failure cases (Fig. 7): the worst subjects by the figures behind the notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from models.config import Params
from tasks.generated import read_pairs, records
from tasks.inspect_sheets import worst_sheet
from tasks.methods import OURS, method_name
from tasks.notices import Finding, loose_share, mask_findings, measures_of, notices, side_finding, unseen_share
from tasks.paths import Paths
from tasks.quality import FLAGS, MEANING, flags
from tasks.report_examples import Picture, Stores, on_grey
from tasks.report_files import Shelf
from tasks.report_media import frame_indices, outlined, shrink
from tasks.report_subjects import reference_indices
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


def failure_section(params: Params, paths: Paths, shelf: Shelf) -> dict[str, Any]:
    """What the template shows of failure cases.

    Args:
        params: All settings; `generate`, `notices`, `quality` and `report` are used.
        paths: Where the data lies.
        shelf: Where the pictures go.

    Returns:
        `cases`, the worst first, with pictures and sentences; how many subjects were looked at, and how many have a
        notice; `flags`, the clips that a limit of `quality` catches, and `worst`, a sheet of the worst clips of all.
    """
    pairs, stores = read_pairs(paths), Stores(paths)
    measures = pd.read_parquet(paths.mask_table)
    angles = array(open_store(paths.geometry), "angles_deg")
    good = pairs[pairs["status"] == "ok"].drop_duplicates("subject_clip")
    cases = [Case(pair, _findings(pair, params, stores, measures, angles)) for pair in records(good)]
    cases.sort(key=lambda case: -case.worst.severity)
    return {
        "cases": [_shown(case, params, stores, shelf) for case in cases[: params.report.examples] if not shelf.full],
        "subjects": len(cases),
        "noticed": sum(case.worst.severity > 1 for case in cases),
        "flags": _flags(measures, params),
        "clips": len(measures),
        "worst": shelf.image(worst_sheet(paths, params.quality, params.report.examples)),
    }


def _flags(measures: pd.DataFrame, params: Params) -> list[dict[str, Any]]:
    """How many clips every limit catches, and what that means."""
    found = [text.split(",") for text in flags(measures, params.quality)]
    counts = {name: sum(name in names for names in found) for name in FLAGS}
    return [{"name": name, "meaning": MEANING[name], "count": count} for name, count in counts.items()]


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
    yaw = np.asarray(angles[row])[reference_indices(pair, stores, params), 0]
    return [*found, side_finding(yaw, unseen, params.notices)]


def _shown(case: Case, params: Params, stores: Stores, shelf: Shelf) -> dict[str, Any]:
    """Pictures and sentences of a case."""
    pair, row = case.pair, int(case.pair["subject_row"])
    frames, head = np.asarray(stores.frames[row]), np.asarray(stores.head[row])
    at = reference_indices(pair, stores, params)
    canonical = shelf.image(shrink(on_grey(_canonical(pair, stores))))
    said = notices(case.findings, "subject video")
    strips = [
        Picture("References", "the references of the subject", shelf.strip(frames, at)),
        Picture("Their head masks", "references, the head outlined", shelf.strip(outlined(frames, head), at)),
    ]
    output = stores.output(OURS, pair)
    if output is not None:
        shown = frame_indices(len(output), len(at))
        strips.append(Picture(f"{method_name(OURS)} with it", "output made from this head", shelf.strip(output, shown)))
    return {
        "title": f"{pair['subject_identity']}, clip {pair['subject_clip']}",
        "sentences": said or [f"Within every limit; nearest to one: {case.worst.measured}"],
        "noticed": bool(said),
        "singles": [Picture("Canonical head", f"canonical head of {pair['subject_clip']}", canonical)],
        "strips": strips,
    }
