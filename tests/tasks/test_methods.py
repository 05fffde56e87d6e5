"""The list of methods: every name has its row, and what it says fits the settings and the paper's table."""

from __future__ import annotations

from typing import get_args

from models.config import MethodName
from tasks.methods import BASELINE, METHODS, OURS, method_name, of_role
from tasks.paper_tables import TABLE3


def test_every_name_of_the_settings_has_a_row_of_its_own() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    assert len({row.label for row in METHODS.values()}) == len(METHODS)


def test_n_is_what_the_name_says() -> None:
    named = {name: row.references for name, row in METHODS.items() if row.references}
    assert named == {f"head3d_n{count}": count for count in (1, 3, 10)}


def test_table_3_is_ours_and_every_ablation() -> None:
    assert set(of_role(list(METHODS), "ours", "ablation")) == set(TABLE3)
    assert of_role([BASELINE, OURS], "trivial") == [BASELINE]


def test_an_ablation_changes_one_thing() -> None:
    for name in of_role(list(METHODS), "ablation"):
        row = METHODS[name]
        assert [row.references is not None, row.mean_head, not row.driving_head].count(True) == 1


def test_an_unknown_name_is_shown_as_it_is() -> None:
    assert method_name("mean_canonical") == "Mean canonical head"
    assert method_name("fomm") == "fomm"
