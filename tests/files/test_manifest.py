"""A run's manifest: read back as it was written, and refused by place, key and advice if it is not one."""

from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_json
from allo.files.manifest import read_manifest, stages_done, write_manifest

ENTRY = {"hash": "h", "outputs": {"00-sft": "a"}, "seconds": 1.5, "counts": {"steps": 3}, "seed": 0}
CONTENT = {"schema": 1, "identity": {"name": "tiny"}, "stages": {"sft": ENTRY}}


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert read_manifest(run) is None and stages_done(run) == {}
    write_manifest(run, CONTENT)
    assert read_manifest(run) == CONTENT and stages_done(run) == {"sft": ENTRY}
    stages_done(run).clear()
    assert stages_done(run) == {"sft": ENTRY}
    assert read_json(run.manifest).keys() - CONTENT.keys() == {"sha256"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"identity": None}, "`identity`"),
        ({"identity": {"name": 3}}, "`identity.name`"),
        ({"stages": []}, "`stages`"),
        *(
            ({"stages": {"sft": ENTRY | {key: None}}}, f"`stages.sft.{key}`")
            for key in ENTRY
            if key != "seed"
        ),
    ],
)
def test_a_wrong_form_is_named_with_its_file_its_key_and_what_to_do(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    write_manifest(run, CONTENT | change)
    with pytest.raises(UserError) as found:
        read_manifest(run)
    assert str(found.value).startswith(f"{run.manifest}: {said}")
    assert str(found.value).endswith("Start its run again.")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"identity": {}}', None], ids=["empty", "list", "form", "seal"]
)
def test_the_advice_is_the_callers(content: str | None, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_manifest(run, CONTENT)
    run.manifest.write_text(run.manifest.read_text().replace("1.5", "2.5") if content is None else content)
    for options, end in (({}, "Start its run again."), ({"advice": "Ask Ada."}, "Ask Ada.")):
        with pytest.raises(UserError) as found:
            read_manifest(run, **options)
        assert str(found.value).startswith(f"{run.manifest}: ") and str(found.value).endswith(end)
