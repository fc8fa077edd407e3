"""A model of the hub counts as here once its weights are, so that the bars of its download are shown before."""

from pathlib import Path

import pytest

from allo.models.cached import is_cached


def test_a_configuration_alone_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.json"
    found: list[object] = [None]
    monkeypatch.setattr("allo.models.cached.try_to_load_from_cache", lambda *_: found[0])
    assert not is_cached("owner/name", weights=False)
    found[0] = object()  # known to be absent at the hub
    assert not is_cached("owner/name", weights=False)
    found[0] = str(config)
    assert is_cached("owner/name", weights=False) and not is_cached("owner/name", weights=True)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert is_cached("owner/name", weights=True)
