"""A checkpoint of two Meta-World tasks, small enough to be made while the tests run, with its demonstrations."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from rl import cli
from rl.envs.sim import make_spec
from rl.stages.collect import collect_scripted
from rl.stages.images import model_spec
from rl.verbs import train
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.windows import Windows
from world_model.view import View
from world_model.wam import trust
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import save_model
from world_model.wam.training import StageConfig, fit_statistics, train_stage

settings.register_profile("unhurried", deadline=None)  # a loaded machine is no fault
settings.load_profile("unhurried")

ROOT = Path(__file__).resolve().parent.parent.parent
Call = Callable[..., tuple[int, str, str]]
"""Words of a command -> exit code, standard output, standard error."""

TASKS = ("button-press-topdown", "push")
CONFIG = ModelConfig(width=32, world_width=48, action_width=32, n_layers=2, n_heads=2)


def make_image_model() -> WorldActionModel:
    """Return a tiny model that sees two tasks through one camera, and has learned nothing yet."""
    torch.manual_seed(0)
    config = replace(CONFIG, n_layers=1, views={"front": View()}, image_size=32, patch_dim=4)
    return WorldActionModel(config, model_spec(make_spec("metaworld", ["push", "door-open"]), config))


def make_seeing() -> WorldActionModel:
    """Return the same with statistics, so that it can act."""
    model = make_image_model()
    codec = model.codec
    for statistics in (codec.vector.state, codec.vector.change, codec.state, codec.scale):
        statistics.fit(torch.randn(64, *statistics.mean.shape))
    model.action_codec.action.fit(torch.randn(64, 4))
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def short_calibrations() -> Iterator[None]:
    """Let trust be calibrated in a hundredth of the steps, which is enough to see that it is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "N_STEPS", 40)
        yield


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in this process."""

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a new folder, where `runs/` is made."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def image_model() -> WorldActionModel:
    """See `make_image_model`."""
    return make_image_model()


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training end without its report, which takes as long as a small run; tests/rl/report has tests of it."""
    monkeypatch.setattr(train, "_report", lambda *_: None)


@pytest.fixture
def seeing() -> WorldActionModel:
    """See `make_seeing`."""
    return make_seeing()


@pytest.fixture(scope="session")
def demonstrations() -> list[Episode]:
    return collect_scripted("expert", TASKS, 6)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, demonstrations: list[Episode]) -> Path:
    """Folder of a model that has learned to press the button, mostly."""
    torch.manual_seed(0)
    model = WorldActionModel(CONFIG, make_spec("metaworld", TASKS))
    windows = Windows(demonstrations, TASKS, CONFIG.n_context_frames, CONFIG.chunk_size)
    fit_statistics(model, windows, n=1000)
    config = StageConfig(n_steps=50, batch_size=16, learning_rate=3e-3, warmup_steps=10)
    train_stage("pretrain", model, windows, config)
    train_stage("tune", model, windows, replace(config, n_steps=100, batch_size=64, atoms=(0.0, 1.0, 0.0, 0.0, 0.0)))
    folder = tmp_path_factory.mktemp("checkpoints")
    EpisodeStore(folder / "episodes").append(demonstrations, model.spec)
    save_model(folder / "tiny", model, "tune", extra=EpisodeStore(folder / "episodes").files())
    return folder / "tiny"


class Torchrun:
    """Runs a Python program in several processes of torchrun, in the current folder."""

    def __call__(
        self, *words: str, n: int = 2, restarts: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
        return subprocess.run([*command, f"--max-restarts={restarts}", *words], env=env, capture_output=True, text=True)


@pytest.fixture(scope="session")
def torchrun() -> Torchrun:
    return Torchrun()


@pytest.fixture(scope="session")
def tiny(checkpoint: Path) -> list[str]:
    """Overrides that make a run of any preset a matter of seconds."""
    return [
        f"checkpoint={checkpoint}",
        "env.tasks=[button-press-topdown]",
        *"threads=1 total_timesteps=320 n_rounds=1 env.n_envs=4 env.max_steps=64 eval.n_episodes=4".split(),
        *"dream.n_envs=8 dream.n_updates=1 dream.n_starts=4 dream.horizon=2 dream.refit_steps=2".split(),
        *"dream.n_rounds=null".split(),
        *"gate.n_episodes=4 gate.max_episodes=4".split(),
        *"ppo.n_steps=4 ppo.batch_size=16 ppo.n_epochs=1 ppo.critic_warmup_steps=0 ppo.bc_batch_size=8".split(),
        "ppo.imitation_steps=20",
    ]
