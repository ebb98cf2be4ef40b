"""What a run keeps of its inputs, and what it refuses to continue with."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.errors import UserError
from rl.compose import compose
from rl.config import TrainConfig
from rl.runs.inputs import check_inputs, inputs_of, keep_sources


def test_the_file_of_an_environment_is_kept_and_must_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, run = Path("mine/env.py"), Path("runs/a/1")
    file.parent.mkdir()
    file.write_text("def make():\n    return None\n")
    Path("mine/preset.yaml").write_text("base: gaussian\nenv: {id: env.py:make}\n")
    config = compose("mine/preset.yaml", [], TrainConfig)
    assert config.env.id == f"{tmp_path}/mine/env.py:make"  # beside the preset
    before = inputs_of(config)
    keep_sources(config, run)
    check_inputs(config, run, before)
    (copy,) = (run / "plugins").iterdir()
    assert before.keys() == {"env.id"} and copy.read_text() == file.read_text()
    file.write_text("def make():\n    return 1\n")
    with pytest.raises(
        UserError, match=r"^env.id: .*mine/env.py has changed since the run began; restore it from runs"
    ):
        check_inputs(config, run, before)
