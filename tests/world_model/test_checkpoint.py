"""A checkpoint comes back exactly, survives a crash at any moment, and any damage to it is one clear line."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

import world_model.checkpoint as checkpoint
import world_model.files as files
from rewards.errors import UserError
from world_model.checkpoint import (
    builtin_checkpoints,
    find_checkpoint,
    load_checkpoint,
    load_training_state,
    pack_training_state,
    save_checkpoint,
)

CONFIG = {"stage": "tune", "control_hz": 80.0, "tasks": ["push", "pick"], "parent": None}


def tensors(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.arange(12.0).view(3, 4).T + value,  # not contiguous
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }


def save(folder: Path, value: float = 0.0) -> None:
    save_checkpoint(folder, CONFIG | {"value": value}, tensors(value), "# Card\n", pack_training_state({"step": value}))


def value_of(folder: Path) -> float:
    config, loaded = load_checkpoint(folder)
    assert torch.equal(loaded["weight"], tensors(config["value"])["weight"])
    assert load_training_state(folder) == {"step": config["value"]}
    return config["value"]


def line(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip(tmp_path) -> None:
    folder = tmp_path / "a" / "b"
    save_checkpoint(folder, CONFIG, tensors(), "# Card\n")
    config, loaded = load_checkpoint(folder)
    assert config == CONFIG
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert (folder / "README.md").read_text() == "# Card\n"
    assert os.listdir(folder.parent) == ["b"]
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    assert manifest["README.md"] == {"size": 7, "sha256": files.sha256(folder / "README.md")}


def test_saving_over_a_checkpoint_replaces_it_and_leaves_nothing_behind(tmp_path) -> None:
    for value in (1.0, 2.0):
        save(tmp_path / "last", value)
    assert value_of(tmp_path / "last") == 2.0
    assert os.listdir(tmp_path) == ["last"]


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is not a checkpoint; nothing was replaced" in line(save, tmp_path)
    assert "is not a checkpoint; nothing was replaced" in line(save, tmp_path / "thesis.tex")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_crash_at_any_moment_of_a_save_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch) -> None:
    class Crash(BaseException):
        """Passes every `except Exception`, as kill -9 does."""

    calls = 0

    def crashing(operation, crash_at):
        def run(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == crash_at:
                raise Crash
            return operation(*args, **kwargs)

        return run

    folder, seen = tmp_path / "last", set()
    save(folder, 1.0)
    for crash_at in range(1, 100):
        calls = 0
        with monkeypatch.context() as patch:
            for owner, name in [(os, "fsync"), (os, "open"), (Path, "rename"), (files, "remove"), (Path, "mkdir")]:
                patch.setattr(owner, name, crashing(getattr(owner, name), crash_at))
            try:
                save(folder, 2.0)
                break
            except Crash:
                seen.add(value_of(folder))
        save(folder, 1.0)
        assert os.listdir(tmp_path) == ["last"] and value_of(folder) == 1.0
    assert crash_at > 15 and seen == {1.0, 2.0}


def test_a_full_disk_leaves_the_old_checkpoint_and_no_leftovers(tmp_path, monkeypatch) -> None:
    save(tmp_path / "last", 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        message = line(save, tmp_path / "last", 2.0)
    assert (
        message
        == f"{tmp_path / 'last'}: cannot write it (No space left on device); free the disk or choose another folder"
    )
    assert os.listdir(tmp_path) == ["last"] and value_of(tmp_path / "last") == 1.0


ALTERED = "its sha256 is not the one in manifest.json; the file is altered, copy the checkpoint again"


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "README.md", "training_state.json", "training_state.safetensors"]
)
def test_a_flipped_byte_is_named(tmp_path, name: str) -> None:
    save(tmp_path / "c")
    path = tmp_path / "c" / name
    whole = path.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert line(load_checkpoint, tmp_path / "c") == f"{path}: {ALTERED}"
        assert line(load_training_state, tmp_path / "c") == f"{path}: {ALTERED}"


def test_a_flipped_byte_in_the_manifest_never_passes_unless_it_means_nothing(tmp_path) -> None:
    save(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            load_checkpoint(tmp_path / "c")
        except UserError as error:
            assert str(tmp_path / "c") in str(error) and "\n" not in str(error)
        else:
            assert json.loads(path.read_bytes()) == json.loads(whole)


def test_a_truncated_file_is_named_with_both_sizes(tmp_path) -> None:
    save(tmp_path / "c")
    path = tmp_path / "c" / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100])
    expected = f"{path}: it has 100 bytes, manifest.json says {size}; the file is truncated or altered, "
    assert line(load_checkpoint, tmp_path / "c") == expected + "copy the checkpoint again"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md", "manifest.json"])
def test_a_missing_file_is_named(tmp_path, name: str) -> None:
    save(tmp_path / "c")
    path = tmp_path / "c" / name
    path.unlink()
    assert line(load_checkpoint, tmp_path / "c") == f"{path}: the file is missing; copy the checkpoint again"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (b"{nonsense", "it is not valid JSON; copy the checkpoint again"),
        (b"\xff\xfe", "it is not valid JSON; copy the checkpoint again"),
        (b"[" * 3000 + b"]" * 3000, "it is not valid JSON; copy the checkpoint again"),
        (b'{"schema_version": 1, "step": NaN}', "it is not valid JSON; copy the checkpoint again"),
        (b'{"schema_version": true}', "schema_version is missing or not a number; copy the checkpoint again"),
        (b'{"schema_version": 0}', "schema_version is missing or not a number; copy the checkpoint again"),
        (b"[1]", "it does not hold a JSON object; copy the checkpoint again"),
        (b"{}", "schema_version is missing or not a number; copy the checkpoint again"),
        (b'{"schema_version": 2}', "schema_version 2, known up to 1; upgrade wamtune"),
    ],
)
def test_a_config_with_a_right_sha256_may_still_be_wrong(tmp_path, config: bytes, reason: str) -> None:
    save_checkpoint(tmp_path, CONFIG, tensors(), extra={"config.json": config})
    assert line(load_checkpoint, tmp_path) == f"{tmp_path / 'config.json'}: {reason}"


def test_a_model_that_is_no_safetensors_file_is_named(tmp_path) -> None:
    save_checkpoint(tmp_path, CONFIG, tensors(), extra={"model.safetensors": b"\x80\x04 a pickle"})
    reason = "it is not a safetensors file; copy the checkpoint again"
    assert line(load_checkpoint, tmp_path) == f"{tmp_path / 'model.safetensors'}: {reason}"


def test_find_by_path_run_folder_and_builtin_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "BUILTIN", tmp_path / "builtin")
    save(tmp_path / "builtin" / "metaworld-tuned", 3.0)
    save(tmp_path / "runs" / "r" / "checkpoints" / "last", 4.0)
    assert builtin_checkpoints() == ["metaworld-tuned"]
    assert load_checkpoint("metaworld-tuned")[0]["value"] == load_checkpoint("metaworld")[0]["value"] == 3.0
    assert load_checkpoint(tmp_path / "runs" / "r")[0]["value"] == 4.0
    assert find_checkpoint(str(tmp_path / "builtin" / "metaworld-tuned")) == tmp_path / "builtin" / "metaworld-tuned"
    for time, value in (("20260101-000000-s0", 5.0), ("20260102-000000-s0", 6.0)):
        save(tmp_path / "runs" / "push" / time / "checkpoints" / "last", value)
    (tmp_path / "runs" / "push" / "20260103-000000-s0" / "checkpoints").mkdir(parents=True)  # nothing saved yet
    assert load_checkpoint(tmp_path / "runs" / "push")[0]["value"] == 6.0
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "runs" / "hammer" / "20260101-120000-s0" / "checkpoints" / "last", 7.0)
    assert load_checkpoint("latest")[0]["value"] == load_checkpoint("runs/push")[0]["value"] == 6.0
    save(tmp_path / "runs" / "hammer" / "20260104-000000-s1" / "checkpoints" / "last", 8.0)
    assert load_checkpoint("latest")[0]["value"] == 8.0
    monkeypatch.chdir(tmp_path / "builtin" / "metaworld-tuned")
    assert load_checkpoint(".")[0]["value"] == 3.0
    missing = tmp_path / "nowhere" / "metaworld-tuned"
    expected = f"no checkpoint at {missing}; known: metaworld-tuned; try `wamtune ls checkpoints`"
    assert line(load_checkpoint, missing) == line(find_checkpoint, missing) == expected
    unfinished = tmp_path / "runs" / "begun" / "20260105-000000-s0"
    unfinished.mkdir(parents=True)
    (unfinished / "config.yaml").write_text("# wamtune pretrain own-pretrained\n")
    go_on = f"{unfinished} has no checkpoint yet; let the run go on: wamtune pretrain {unfinished}"
    assert line(find_checkpoint, unfinished) == line(find_checkpoint, unfinished.parent) == go_on
    monkeypatch.chdir(tmp_path)
    assert "no checkpoint at runs/pusch; did you mean 'runs/push'?" in line(find_checkpoint, "runs/pusch")
    assert "no checkpoint at runs/push-tuned; known: metaworld-tuned;" in line(find_checkpoint, "runs/push-tuned")


def test_a_local_folder_of_the_name_of_a_builtin_does_not_hide_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "BUILTIN", tmp_path / "builtin")
    save(tmp_path / "builtin" / "metaworld-tuned", 3.0)
    monkeypatch.chdir(tmp_path)
    Path("metaworld-tuned").mkdir()
    assert load_checkpoint("metaworld-tuned")[0]["value"] == 3.0


def test_training_state_comes_back_exactly(tmp_path) -> None:
    shared = torch.arange(6.0)
    state = {
        "floats": [0.1, -0.0, 1e-320, 1.7976931348623157e308, math.inf, -math.inf],
        "big": 2**200 + 1,
        "flags": {True: False, None: None, 1.5: "half", "1": "text", (1, "a"): ()},
        "nested": {3: [{"x": (1, 2.0)}, []], "tensor": "not one", "dict": {}},
        "views": (shared[:3], shared[3:]),
        "types": [torch.tensor([1.5, math.nan], dtype=torch.bfloat16), torch.zeros(0, 4), torch.tensor(2**60)],
    }
    save_checkpoint(tmp_path / "c", CONFIG, tensors(), extra=pack_training_state(state))
    got = load_training_state(tmp_path / "c")
    for key in ("floats", "big", "flags", "nested"):
        assert got[key] == state[key]
        assert repr(got[key]) == repr(state[key])  # tells 1 from True and from 1.0, -0.0 from 0.0
    assert torch.equal(torch.cat(got["views"]), shared) and isinstance(got["views"], tuple)
    for mine, theirs in zip(got["types"], state["types"], strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        assert torch.equal(mine.nan_to_num(9.0), theirs.nan_to_num(9.0)) if mine.is_floating_point() else mine == theirs


def test_nan_comes_back_as_nan(tmp_path) -> None:
    save_checkpoint(tmp_path / "c", CONFIG, tensors(), extra=pack_training_state({"loss": math.nan}))
    assert math.isnan(load_training_state(tmp_path / "c")["loss"])


def test_optimizer_and_generator_go_on_as_if_nothing_had_happened(tmp_path) -> None:
    def begin() -> tuple[torch.nn.Linear, torch.optim.Adam, torch.Generator]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(5)

    def train(model, optimizer, generator) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3, generator=generator)).square().sum().backward()
            optimizer.step()

    model, optimizer, generator = begin()
    train(model, optimizer, generator)
    state = {"optimizer": optimizer.state_dict(), "generator": generator.get_state(), "n": 3}
    save_checkpoint(tmp_path / "c", CONFIG, model.state_dict(), extra=pack_training_state(state))
    train(model, optimizer, generator)

    other, other_optimizer, other_generator = begin()
    other.load_state_dict(load_checkpoint(tmp_path / "c")[1])
    loaded = load_training_state(tmp_path / "c")
    assert list(loaded["optimizer"]["state"]) == [0, 1]
    assert loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    other_optimizer.load_state_dict(loaded["optimizer"])
    other_generator.set_state(loaded["generator"])
    train(other, other_optimizer, other_generator)
    assert torch.equal(other.weight, model.weight)


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]: a set cannot be saved"):
        pack_training_state({"a": [1, {2}]})


def test_a_checkpoint_without_training_state_says_so(tmp_path) -> None:
    save_checkpoint(tmp_path / "c", CONFIG, tensors())
    assert line(load_training_state, tmp_path / "c").startswith(f"{tmp_path / 'c'}: no training state in it; ")
