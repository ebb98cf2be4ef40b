"""Checkpoints on the Hub in the verbs: published, evaluated, copied down, and a branch that moves during a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from rl import cli
from rl.verbs import cp, train
from rl.verbs.words import check_words
from tests.world_model.hub_server import HubServer
from world_model import hub
from world_model.checkpoint import checkpoint_files, load_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.wam.store import load_model_and_config, save_model

pytest.importorskip("huggingface_hub")

MALFORMED = "wamtune: hf://pole: expected hf://USER/NAME or hf://USER/NAME@REVISION; correct the name\n"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server that the verbs ask in place of the Hub, and `tmp_path` as the current folder.

    huggingface_hub runs in processes of its own, see `HubServer.python`; the verbs run in this one, which is faster.
    """
    server = HubServer()

    def snapshot_download(repo: str, **options: Any) -> str:
        call = f"import huggingface_hub as h; print(h.snapshot_download({repo!r}, **{options!r}))"
        return server.python(call, tmp_path).stdout.strip()

    def upload(folder: Path, name: str, private: bool) -> str:
        call = f"from world_model.hub import upload; print(upload({str(folder)!r}, {name!r}, private={private}))"
        return server.python(call, tmp_path, HF_TOKEN="hf_mine").stdout.splitlines()[-1]

    monkeypatch.setattr(hub, "_huggingface_hub", lambda _: SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.setattr(cp, "upload", upload)
    monkeypatch.setattr(hub, "_FOLDERS", {})
    monkeypatch.chdir(tmp_path)
    yield server
    server.close()


@pytest.fixture
def measured(checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with a figure in its config, and a card."""
    model, _ = load_model_and_config(checkpoint)
    metrics = {"success": {"push": {"rate": 0.5, "low": 0.25, "high": 0.75, "n": 12}}}
    about, demonstrations = {"metrics": metrics}, EpisodeStore(checkpoint).files()
    save_model(tmp_path / "mine", model, "tune", "hf://ann/base", about, "# Mine\n", extra=demonstrations)
    return tmp_path / "mine"


def test_published_evaluated_and_copied_down(
    server: HubServer, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["cp", "mine", "hf://ann/pole", "license=mit"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == f"checkpoint mine uploaded to {server.url}/ann/pole\n"
    assert server.private == {"ann/pole": True} and server.tokens == {"Bearer hf_mine"}
    _, front, card = server.files("ann/pole")["README.md"].decode().split("---\n")
    assert card == "# Mine\n" and yaml.safe_load(front)["base_model"] == "ann/base"
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"][0]["value"] == 50.0

    words = "tasks=push n_episodes=1 n_envs=1 max_steps=8 out=found.json".split()
    found = {}
    for name in ("mine", "ann/pole"):
        assert cli.main(["eval", name, *words]) == 0, capsys.readouterr().err
        found[name] = json.loads(Path("found.json").read_text())["episodes"]
    assert "hf://ann/pole: commit " in capsys.readouterr().out and found["mine"] == found["ann/pole"]

    assert cli.main(["cp", "hf://ann/pole@main", "."]) == 0, capsys.readouterr().err
    assert not any(path.is_symlink() for path in Path("pole").iterdir())
    (config, weights), (copied_config, copied_weights) = load_checkpoint(measured), load_checkpoint(Path("pole"))
    assert copied_config == config and weights.keys() == copied_weights.keys()
    assert all(torch.equal(value, copied_weights[name]) for name, value in weights.items())
    uploaded = {name: data for name, data in server.files("ann/pole").items() if name != ".gitattributes"}
    assert checkpoint_files(Path("pole")) == uploaded


def test_a_link_out_of_the_cache_of_its_repository_is_not_copied(
    server: HubServer, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.commit("ann/pole", checkpoint_files(measured))
    card = hub.download("ann/pole", say=lambda line: None) / "README.md"
    Path("secret.md").write_bytes(card.read_bytes())
    card.unlink()
    card.symlink_to(Path("secret.md").resolve())
    assert cli.main(["cp", "ann/pole", "copy"]) == 2 and not Path("copy").exists()
    assert "README.md: it is a link to a file outside" in capsys.readouterr().err


def test_a_branch_that_moves_is_noticed_when_a_run_goes_on(
    server: HubServer,
    checkpoint: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = checkpoint_files(checkpoint)
    commit = server.commit("ann/pole", files)
    with monkeypatch.context() as patch:
        save_state = train.save_state

        def stop(folder: Path, state: dict[str, Any]) -> None:
            save_state(folder, state)
            raise KeyboardInterrupt

        patch.setattr(train, "save_state", stop)
        assert cli.main(["train", "sim", *tiny, "name=stopped", "eval.n_paired=0", "checkpoint=ann/pole"]) == 130
    (run,) = Path("runs/stopped").iterdir()
    assert "checkpoint: hf://ann/pole\n" in (run / "config.yaml").read_text()

    model, _ = load_model_and_config(checkpoint)
    with torch.no_grad():
        next(model.action.parameters()).add_(1.0)
    save_model(Path("newer"), model, "tune", extra=EpisodeStore(checkpoint).files())
    server.commit("ann/pole", checkpoint_files(Path("newer")))
    hub._FOLDERS.clear()  # as in a new process
    capsys.readouterr()
    assert cli.main(["train", str(run)]) == 2
    assert capsys.readouterr().err == (
        "wamtune: checkpoint=hf://ann/pole: these are not the weights that the run began with; put those back, "
        f"or begin a new run: wamtune train {run / 'config.yaml'}\n"
    )

    text = (run / "config.yaml").read_text().replace("hf://ann/pole\n", f"hf://ann/pole@{commit}\n")
    (run / "config.yaml").write_text(text)
    assert cli.main(["train", str(run)]) == 0, capsys.readouterr().err
    config, _ = load_checkpoint(run / "checkpoints" / "last")
    assert config["parent"] == f"hf://ann/pole@{commit}" and config["metrics"]["success"]["mean"]["n"] == 4


def test_a_checkpoint_of_another_program(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.commit("ann/pole", {"config.json": b"{}", "model.safetensors": b""})
    line = "it has no manifest.json; expected a checkpoint that wamtune wrote, take another one"
    assert cli.main(["eval", "ann/pole"]) == 2 and capsys.readouterr().err == f"wamtune: ann/pole: {line}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["eval", "hf://pole"], MALFORMED),
        (["train", "mix", "checkpoint=hf://pole"], MALFORMED),
        (["tune", "metaworld-tuned", "checkpoint=hf://pole"], MALFORMED),
        (["deploy", "hf://pole", "export"], MALFORMED),
        (["cp", "metaworld-tuned", "hf://pole"], MALFORMED),
        (
            ["train", "hf://ann/pole"],
            "wamtune: train hf://ann/pole: expected a preset of wamtune train, and hf://ann/pole is a checkpoint; "
            "train it with wamtune train mix checkpoint=hf://ann/pole, measure it with wamtune eval hf://ann/pole\n",
        ),
        (
            ["cp", "demo", "hf://ann/pole"],
            "wamtune: demo: expected a checkpoint or a run to upload; see `wamtune ls checkpoints`\n",
        ),
        (
            ["cp", "metaworld-tuned", "hf://ann/pole", "privat=false"],
            "wamtune: unknown key 'privat' on the command line; did you mean 'private'?\n",
        ),
        (
            ["cp", "metaworld-tuned", "hf://ann/pole", "license=My own"],
            "wamtune: license='My own': expected an identifier of the Hub, such as apache-2.0\n",
        ),
    ],
)
def test_mistakes_are_answered_before_the_network_is_asked(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2 and capsys.readouterr().err == line


def test_words_do_not_ask_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("world_model.hub._huggingface_hub", lambda hub: pytest.fail("asked"))
    for words in (["eval", "ann/pole"], ["deploy", "ann/pole", "export"], ["dream", "hf://ann/pole"]):
        check_words(words[0], words[1:])
    check_words("train", ["mix", "checkpoint=hf://ann/pole@v1"])
