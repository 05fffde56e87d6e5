"""Every method whose videos are made, measured and shown: what it does and what a person reads for it.

The names stand in `generate.methods`: ours are `models.config.MethodName`, each with a row here; any other is a folder
of videos made elsewhere, named in `generate.external`. A method that comes later is one more name and one more row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from models.config import MethodName

OURS: MethodName = "head3d"
BASELINE: MethodName = "copy_reference"
"""The trivial baseline: one frame of the subject, held still."""

Role = Literal["ours", "ablation", "trivial", "external"]
Setting = Literal["self", "cross"]
BOTH: tuple[Setting, ...] = ("self", "cross")


@dataclass(frozen=True)
class Method:
    """One way to make the videos of a pair.

    Attributes:
        label: What a person reads for its name.
        role: `ours`; `ablation` (a row of Table 3: ours with one thing changed); `trivial` (needs no model);
            `external` (videos made elsewhere).
        about: What it does.
        settings: For which pairs it makes videos. The N of Table 3 are measured under self-reconstruction only, and
            nothing else reads their videos.
        references: N; None is `generate.references`.
        mean_head: x_bar^c in place of x_hat^c.
        driving_head: Whether the fusion sees x_hat_dri; False takes the second network that the stage `fusion` trains.
        in_study: Whether raters of the user study compare it with ours.
    """

    label: str
    role: Role
    about: str
    settings: tuple[Setting, ...] = BOTH
    references: int | None = None
    mean_head: bool = False
    driving_head: bool = True
    in_study: bool = False


def _with_references(count: int) -> Method:
    return Method(
        f"Head3D, N = {count}", "ablation", f"the same trained model with {count} reference frames", ("self",), count
    )


class _Methods(dict[str, Method]):
    """Rows by name; a name that is none of ours is a folder of `generate.external` (the settings' rules see to it)."""

    def __missing__(self, name: str) -> Method:
        return Method(name, "external", "videos made elsewhere (generate.external)", in_study=True)


_OURS: dict[str, Method] = {
    OURS: Method("Head3D", "ours", "the whole model, N = generate.references"),
    "head3d_n1": _with_references(1),
    "head3d_n3": _with_references(3),
    "head3d_n10": _with_references(10),
    "mean_canonical": Method(
        "Mean canonical head", "ablation", "the same trained model with x_bar^c in place of x_hat^c",
        mean_head=True, in_study=True,
    ),
    "no_driving_head": Method(
        "Without the driving head", "ablation", "a fusion network of its own, trained without x_hat_dri",
        driving_head=False, in_study=True,
    ),
    BASELINE: Method("Copy of the reference frame", "trivial", "s_ref held still"),
}  # fmt: skip
METHODS = _Methods(_OURS)


def method_name(method: str) -> str:
    """The readable name of a method, also of one that this version does not know."""
    return METHODS[method].label


def of_role(methods: Iterable[str], *roles: Role) -> list[str]:
    """Those of `methods` that have one of the roles, in their order."""
    return [method for method in methods if METHODS[method].role in roles]
