"""Files that somebody wrote to do harm: each is refused with one line, and nothing of it is run, read or written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.errors import UserError
from rl import cli
from rl.ppo.sb3 import ChunkPPO
from world_model.checkpoint import CONFIG, MANIFEST, MODEL, load_training_state, save_checkpoint

MARK = "attacked"
"""A file that appears where code of an attacker ran."""


class RunsCode:
    """What leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARK,)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "hunter2")
    Path("outside").mkdir()
    Path("outside/secret.txt").write_text("hunter2")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that must fail; nothing ran and no secret was told."""
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code == 2 and err.count("\n") == 1, err
    assert not Path(MARK).exists() and "hunter2" not in out + err
    assert not Path("runs").exists()
    return err


def made(**files: bytes) -> Path:
    """A checkpoint folder; `files` replace those in it, with a manifest that is right for them."""
    folder = Path("bad")
    save_checkpoint(folder, {"stage": "tune"}, {"w": torch.zeros(2)})
    for name, data in files.items():
        (folder / name).write_bytes(data)
    entries = {
        p.name: {"size": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in folder.iterdir()
        if p.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": entries}))
    return folder


def pt_file() -> Path:
    torch.save({"w": RunsCode()}, "evil.pt")
    return Path("evil.pt")


def sb3_zip() -> Path:
    with zipfile.ZipFile("evil.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":serialized:": pickle.dumps(RunsCode()).hex()}}))
        archive.writestr("policy.pth", pickle.dumps(RunsCode()))
    return Path("evil.zip")


def zip_slip() -> Path:
    with zipfile.ZipFile("slip.zip", "w") as archive:
        archive.writestr(f"../{MARK}", "x")
    return Path("slip.zip")


def pickle_as_weights() -> Path:
    buffer = io.BytesIO()
    torch.save({"w": RunsCode()}, buffer)
    return made(**{MODEL: buffer.getvalue()})


def a_billion_elements() -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    return made(**{MODEL: struct.pack("<Q", len(header)) + header})


def a_header_longer_than_the_file() -> Path:
    return made(**{MODEL: struct.pack("<Q", 2**62) + b"{}"})


def nested_brackets() -> Path:
    return made(**{CONFIG: b"[" * 3000 + b"]" * 3000})


def nan_in_json() -> Path:
    return made(**{CONFIG: b'{"schema_version": 1, "control_hz": NaN}'})


def a_manifest_that_points_outside() -> Path:
    folder = made()
    data = Path("outside/secret.txt").read_bytes()
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../outside/secret.txt"] = entry
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


CHECKPOINTS: dict[Callable[[], Path], str] = {
    pt_file: "evil.pt is a file; a checkpoint is a folder",
    sb3_zip: "evil.zip is a file; a checkpoint is a folder",
    zip_slip: "slip.zip is a file; a checkpoint is a folder",
    pickle_as_weights: "model.safetensors: it is not a safetensors file",
    a_billion_elements: "model.safetensors: it is not a safetensors file",
    a_header_longer_than_the_file: "model.safetensors: it is not a safetensors file",
    nested_brackets: "config.json: it is not valid JSON",
    nan_in_json: "config.json: it is not valid JSON",
    a_manifest_that_points_outside: "it lists '../outside/secret.txt', which is outside the checkpoint",
}


@pytest.mark.parametrize("attack", CHECKPOINTS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("verb", ["eval", "train"])
def test_checkpoints(verb: str, attack: Callable[[], Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(attack())
    words = ["train", "sim", f"checkpoint={path}"] if verb == "train" else [verb, path]
    assert CHECKPOINTS[attack] in refused(capsys, *words)


CONFIGS = {
    "alias bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nname: y\n", "anchors and aliases are not allowed"),
    "environment variable": ("name: '${oc.env:SECRET}'\n", "interpolation is not allowed"),
    "3,000 brackets": ("name: " + "[" * 3000 + "]" * 3000 + "\n", "nested more than"),
    "_target_": ("name: x\n_target_: os.system\n", "unknown key '_target_'"),
    "python tag": (f"name: !!python/object/apply:os.mkdir [{MARK}]\n", "cannot read the YAML"),
    "NaN": ("name: x\nppo: {gamma: .nan}\n", "ppo.gamma=nan"),
    "infinity": ("name: x\nppo: {learning_rate: .inf}\n", "ppo.learning_rate=inf"),
    "a name that climbs": ("name: ../../outside\n", "name='../../outside'"),
    "very long": ("name: x\n#" + "x" * 10_000_000, "it has 10,000,009 bytes, at most 400,000 are read"),
    "long": ("name: x\n#" + "x" * 300_000, "characters; at most"),
}


@pytest.mark.parametrize("attack", CONFIGS)
def test_configs(attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, line = CONFIGS[attack]
    Path("evil.yaml").write_text(text)
    assert line in refused(capsys, "train", "evil.yaml")


def test_a_config_inside_a_checkpoint_names_no_code(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The config that a run was made with is kept as text, and nothing reads it."""
    Path("plugin.py").write_text(f"import os\nos.mkdir({MARK!r})\n")
    config = json.loads((checkpoint / CONFIG).read_text())
    config |= {"config": "rewards: {x: {func: 'plugin.py:x', weight: 1.0}}", "rewards": {"func": "plugin.py:x"}}
    folder = Path("bad")
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = json.dumps(config).encode()
    (folder / CONFIG).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][CONFIG] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert cli.main(["eval", str(folder), "n_episodes=1", "n_envs=1", "max_steps=8", "tasks=[push]"]) == 0
    assert not Path(MARK).exists()


def test_an_algorithm_is_not_loaded_from_a_zip(make_point: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="pickled and can run code"):
        ChunkPPO.load(sb3_zip(), make_point(1))
    assert not Path(MARK).exists()


def test_what_a_checkpoint_only_links_to_is_not_carried_away(capsys: pytest.CaptureFixture[str]) -> None:
    folder = made()
    (folder / "notes.txt").symlink_to(Path("outside/secret.txt").resolve())
    assert cli.main(["cp", str(folder), "copy"]) == 0
    assert sorted(p.name for p in Path("copy").iterdir()) == ["README.md", CONFIG, MANIFEST, MODEL]


def test_a_state_names_no_class_of_its_own() -> None:
    files = {"training_state.json": b'{"object": ["Popen", {"dict": [["args", "mkdir attacked"]]}]}'}
    save_checkpoint("state", {}, {}, extra={**files, "training_state.safetensors": b"\x02\0\0\0\0\0\0\0{}"})
    with pytest.raises(ValueError, match=r"its training state is not one of this version \(KeyError\('Popen'\)\)"):
        load_training_state("state")
    assert not Path(MARK).exists()
