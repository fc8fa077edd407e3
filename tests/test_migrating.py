"""docs/migrating.md: written from the tables that the trainers use, and complete for the TRL that is installed."""

import dataclasses
import inspect

import pytest

import render_migrating
from allo.training.dpo_config import TRL
from allo.training.trainer import ImproveTrainer
from allo.training.trainer_options import Options

PAGE = render_migrating.page()


@pytest.mark.invariant(
    "docs/migrating.md is written from the tables that the trainers use, for every key of TRL's."
)
def test_the_page_is_what_the_tables_say() -> None:
    assert render_migrating.PAGE.read_text(encoding="utf-8") == PAGE
    assert render_migrating.main(["--check"]) == 0


def test_every_field_of_trls_config_and_every_keyword_of_its_trainer_is_mapped() -> None:
    trl = pytest.importorskip("trl", reason="TRL's own fields; install the extra `trl`")
    assert trl.__version__.startswith(f"{TRL}.")
    fields = [field.name for field in dataclasses.fields(trl.DPOConfig)]
    keywords = [name for name in inspect.signature(trl.DPOTrainer.__init__).parameters if name != "self"]
    for name in fields + keywords:
        assert f"`{name}`" in PAGE, name


def test_each_keyword_that_the_page_honours_is_one_of_the_trainers() -> None:
    own = {*inspect.signature(ImproveTrainer.__init__).parameters, *Options.__annotations__}
    assert render_migrating.HONOURED.keys() <= own


def test_a_table_has_as_many_cells_in_each_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert len(rows) > 60
    assert {line.count("|") for line in rows} <= {3, 4}
