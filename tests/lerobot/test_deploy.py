"""Tiny policies of LeRobot on the simulated arm, and the noise of actions that are held while a chunk is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("lerobot", reason="lerobot is not installed")
pytest.importorskip("transformers", reason="lerobot is installed without its policies")
pytest.importorskip("diffusers", reason="lerobot is installed without its policies")

from rl import cli
from rl.policies.lerobot.denoiser import LeRobotDenoiser
from rl.policies.pilot import DenoiserPilot
from tests.lerobot import tiny
from world_model.data.episodes import EpisodeStore
from world_model.spec import Spec

FLOWS = ("smolvla", "pi0", "pi05", "multi_task_dit_flow", "fastwam")
DDPM = ("multi_task_dit_ddpm", "diffusion")


def fitted(name: str, folder: Path) -> DenoiserPilot:
    """Return a pilot of a tiny policy, for an environment with the features that it reads."""
    with tiny.patched(name):
        denoiser = LeRobotDenoiser(tiny.make(name, folder))
    spec = Spec(dict(denoiser.reads), (-9.0,) * 4, (9.0,) * 4, ("push",), 10.0, {"push": tiny.SENTENCES[0]})
    return DenoiserPilot(denoiser, spec)


def observation(pilot: DenoiserPilot, n: int) -> dict[str, torch.Tensor]:
    """Return random observations of n rows, as a robot gives them."""
    generator, frames = torch.Generator().manual_seed(0), pilot.n_context_frames
    obs = {"task": torch.zeros(n, dtype=torch.long)}
    for name, feature in pilot.spec.features.items():
        unit = torch.rand(n, frames, *feature.shape, generator=generator)
        obs[name] = (255 * unit).to(torch.uint8) if feature.dtype == "uint8" else 8 * unit - 4
    return obs


@pytest.mark.parametrize("name", FLOWS + DDPM)
def test_held_actions_are_on_the_path_of_the_sampler(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that knows the clean chunk and the noise takes each step to the next point of the path."""
    denoiser, steps = fitted(name, tmp_path).denoiser, 4
    assert isinstance(denoiser, LeRobotDenoiser)
    generator = torch.Generator().manual_seed(0)
    noise, actions = (
        torch.randn(2, *size, generator=generator)
        for size in ((denoiser.horizon, denoiser.chain_dim), (denoiser.chunk_size, 4))
    )
    actions = actions.clamp(-0.4, 0.6)  # DDPM clips normalised actions at 1
    encoded = {"state": torch.zeros(2, denoiser.reads["state"].shape[0])}
    path = [denoiser.noised(encoded, actions, noise, i, steps) for i in range(steps)]
    assert all(point is not None and point.shape == noise.shape for point in path)
    true = torch.zeros_like(noise)
    true[:, :, :4] = denoiser._normalised(actions, encoded["state"])
    if name in DDPM:
        monkeypatch.setattr(denoiser.family, "_output", lambda x, t, vector: noise)
    elif name == "multi_task_dit_flow":  # its time runs from noise to data
        keep = 1 - denoiser.loaded.policy.config.sigma_min
        monkeypatch.setattr(denoiser.family, "_output", lambda x, t, vector: true - keep * noise)
    else:
        monkeypatch.setattr(denoiser.family, "_velocity", lambda conditioning, x, t: noise - true)
    end, _ = denoiser.step({}, path[-1], steps - 1, steps)
    torch.testing.assert_close(denoiser.to_actions(encoded, end), actions, atol=2e-3, rtol=0)
    if name not in DDPM:  # the mean of a step of DDPM is nearer to the clean chunk, and its own noise is added
        torch.testing.assert_close(path[0], noise)
        for i in range(steps - 1):
            torch.testing.assert_close(denoiser.step({}, path[i], i, steps)[0], path[i + 1])


@pytest.mark.parametrize("name", [*FLOWS, *DDPM, "act"])
def test_a_chunk_without_held_actions_is_that_of_lerobot(name: str, tmp_path: Path) -> None:
    pilot = fitted(name, tmp_path)
    denoiser, obs = pilot.denoiser, observation(pilot, 2)
    assert isinstance(denoiser, LeRobotDenoiser)
    noise = torch.randn(2, *pilot.noise_shape, generator=torch.Generator().manual_seed(1))
    held = torch.linspace(-0.3, 0.5, 2 * denoiser.chunk_size * 4).view(2, -1, 4)
    free, chunk = (pilot.act(obs, noise, held, torch.full((2,), n)) for n in (0, 3))
    if not denoiser.is_stochastic:
        with torch.no_grad():
            expected = denoiser.own_chunk(obs, noise[:, 0])
        torch.testing.assert_close(free, expected.clamp(-9, 9), atol=1e-5, rtol=1e-5)
    assert torch.equal(chunk[:, :3], held[:, :3]) and chunk.isfinite().all()
    # The rest has seen them, except for a regression.
    assert torch.equal(chunk[:, 3:], free[:, 3:]) == (name == "act")


RUN = ["robot-sim", "task=push", "params.paced=false", "max_steps=12", "n_episodes=1", "limits.max_age_s=60"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("multi_task_dit_state", ["instruction=Push it."]),
        ("act", ["map.state=hand_pos.0,hand_pos.1,hand_pos.2,gripper.0", "params.cameras={front: {}}"]),
    ],
)
def test_a_policy_runs_on_the_simulated_arm(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny.make(name, tmp_path / "mine" / "checkpoints")
    folder.rename(folder.with_name("last"))  # as `wamtune train` leaves it
    assert cli.main(["deploy", "mine", "run", *RUN, *words]) == 0
    said = capsys.readouterr().out
    sentence = "Push it." if name == "multi_task_dit_state" else "Push the puck to the goal."
    assert f"task push, {sentence!r}, 80 Hz" in said and "episode 1: 12 commands, 12 steps, 0 without a plan" in said
    (episode,) = EpisodeStore("runs/robot/sim").load()
    assert episode.length == 12 and episode.action.abs().max() <= 1
    assert episode.action.abs().max() > 0.05 and episode.state.shape == (13, 4 if name == "act" else 21)
    if name == "act":  # an image for each plan, and the last one
        assert episode.obs["images.front"].shape == (4, 64, 64, 3)


def test_what_is_missing_for_the_simulated_arm_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(tiny.make("act", tmp_path))
    state = "map.state=hand_pos.0,hand_pos.1,hand_pos.2,gripper.0"
    for words, line in (
        ([], f"map.state: {folder} reads 4 numbers, and there are 21: hand_pos.0, hand_pos.1, hand_pos.2, gripper.0, "),
        ([state], f"map.images: {folder} reads 'images.front', and the robot's cameras are none; name one with"),
    ):
        assert cli.main(["deploy", folder, "run", *RUN, *words]) == 2
        assert capsys.readouterr().err.startswith(f"wamtune: {line}")
    assert cli.main(["deploy", folder, "export"]) == 2
    assert capsys.readouterr().err.startswith(f"wamtune: deploy {folder} export: only wamtune's own policies are")
