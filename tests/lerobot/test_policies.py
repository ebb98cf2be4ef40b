"""LeRobot's policies as denoisers: the chain is their own sampler, and PPO can trust its likelihood."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lerobot", reason="lerobot is not installed")
pytest.importorskip("transformers", reason="lerobot is installed without its policies")
pytest.importorskip("diffusers", reason="lerobot is installed without its policies")

from rewards.errors import UserError
from rl.config import PPOConfig
from rl.policies.chain import ChainPolicy
from rl.policies.lerobot.denoiser import LeRobotDenoiser
from rl.policies.lerobot.loading import PREPROCESSOR, STEPS, is_lerobot, load
from rl.ppo.buffer import Samples
from rl.ppo.update import PPO
from tests.lerobot import tiny
from world_model.env import Advance, BatchedEnv, Obs, Start
from world_model.spec import Spec
from world_model.tree import rows

NAMES = tiny.NAMES
N, EXECUTED = 5, 4
INSTRUCTIONS = {"push": "push the puck to the goal", "pull": "pull the drawer open"}


@dataclass
class Brought:
    """A tiny policy of LeRobot, brought to an environment of its features."""

    name: str
    folder: Path
    denoiser: LeRobotDenoiser
    policy: ChainPolicy
    obs: Obs


def bring(name: str, folder: Path, **options: Any) -> ChainPolicy:
    denoiser = LeRobotDenoiser(folder, **options)
    return ChainPolicy(denoiser, spec_of(denoiser), n_action_steps=EXECUTED)


def spec_of(denoiser: LeRobotDenoiser) -> Spec:
    return Spec(dict(denoiser.reads), (-1.0,) * 4, (1.0,) * 4, tuple(INSTRUCTIONS), 80.0, INSTRUCTIONS)


def observation(denoiser: LeRobotDenoiser, n: int, seed: int) -> Obs:
    generator = torch.Generator().manual_seed(seed)
    obs = {}
    for name, feature in denoiser.reads.items():
        unit = torch.rand(n, denoiser.n_context_frames, *feature.shape, generator=generator)
        obs[name] = (255 * unit).to(torch.uint8) if feature.dtype == "uint8" else 8 * unit - 4
    return obs | {"task": torch.arange(n) % 2}


@pytest.fixture(scope="module", params=NAMES)
def brought(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brought]:
    name = request.param
    folder = tiny.make(name, tmp_path_factory.mktemp("brought"))
    with tiny.patched(name):
        policy = bring(name, folder)
        denoiser = policy.denoiser
        assert isinstance(denoiser, LeRobotDenoiser)
        yield Brought(name, folder, denoiser, policy, observation(denoiser, N, seed=0))


@torch.no_grad()
def test_without_noise_the_chain_is_the_own_sampler(brought: Brought) -> None:
    denoiser, n_steps = brought.denoiser, brought.policy.n_denoising_steps
    noise = torch.randn(N, denoiser.horizon, denoiser.chain_dim, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # of the noise that DDPM draws in each step
    expected = denoiser.own_chunk(brought.obs, noise)
    encoded = brought.policy.encode(brought.obs)
    prepared, x = denoiser.prepare(encoded), torch.zeros_like(noise) if denoiser.starts_at_zero else noise
    torch.manual_seed(2)
    for i in range(n_steps):
        x, std = denoiser.step(prepared, x, i, n_steps)
        if std is not None and std > 0:
            x = x + std * torch.randn(x.shape)
    found = denoiser.to_actions(encoded, x)
    assert found.shape == (N, denoiser.chunk_size, 4)
    assert (found - expected).abs().max() <= 1e-6
    assert found.std() > 0.01  # in the units of the dataset, and not all the same


def test_the_ratio_is_one_before_an_update_in_any_minibatch(brought: Brought) -> None:
    policy = brought.policy
    encoded = policy.encode(brought.obs)
    decision = policy.sample(encoded, torch.Generator().manual_seed(0))
    reference = policy.reference(encoded, decision.chain)
    for part in (torch.arange(N), torch.tensor([3]), torch.tensor([4, 0, 2])):
        found = policy.evaluate_actions(rows(encoded, part), decision.chain[part], reference[part])
        ratio = (found.log_prob - decision.log_prob[part]).exp()
        assert (ratio - 1).abs().max() <= 1e-5
        assert found.ref_kl.abs().max() <= 1e-6
    assert decision.log_prob.shape == (N, EXECUTED)


def test_gradients_stay_on_the_action_side(brought: Brought) -> None:
    policy, denoiser = brought.policy, brought.denoiser
    encoded = policy.encode(brought.obs)
    decision = policy.sample(encoded, torch.Generator().manual_seed(0))
    policy.zero_grad()
    found = policy.evaluate_actions(encoded, decision.chain, policy.reference(encoded, decision.chain))
    chunk = torch.zeros(N, denoiser.chunk_size, 4)
    chunk[:, -2:] = torch.nan  # after the end of an episode
    loss = policy.imitation_loss(encoded, chunk, torch.Generator().manual_seed(0))
    assert torch.isfinite(loss)
    (found.log_prob.sum() + loss + policy.values(encoded).sum()).backward()
    actor = {id(parameter) for parameter in policy.actor_parameters()}
    for name, parameter in denoiser.named_parameters():
        if id(parameter) in actor:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        else:
            assert parameter.grad is None, name
    policy.zero_grad()


@torch.no_grad()
def test_a_saved_policy_acts_the_same_here_and_in_lerobot(brought: Brought, tmp_path: Path) -> None:
    brought.denoiser.save(tmp_path)
    with tiny.patched(brought.name):
        again = bring(brought.name, tmp_path)
        seed, counter = torch.arange(N), torch.zeros(N, dtype=torch.long)
        first, second = (p.decide(p.encode(brought.obs), seed, counter) for p in (brought.policy, again))
        assert torch.equal(first, second)
        tiny.load(tmp_path)  # by LeRobot's own functions


def test_one_update_of_ppo_moves_the_action_side_alone(brought: Brought) -> None:
    with tiny.patched(brought.name):
        policy = bring(brought.name, brought.folder)
    env = Still(policy, N)
    config = replace(PPOConfig(), n_steps=2, batch_size=N, n_epochs=1, critic_warmup_steps=0, learning_rate=1e-3)
    before = {name: tensor.clone() for name, tensor in policy.denoiser.state_dict().items()}
    ppo = PPO(policy, config, seed=0)
    rollout = ppo.collect(env, 2)
    stats = ppo.update(Samples.from_rollout(rollout, 0.99, 0.95))
    assert stats["approx_kl"] >= 0 and stats["taken_back"] == 0
    trained = {name for name, parameter in policy.denoiser.named_parameters() if parameter.requires_grad}
    moved = {name for name, tensor in policy.denoiser.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and moved <= trained


def test_lora_starts_as_the_policy_and_is_saved_in_its_weights(brought: Brought, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with tiny.patched(brought.name):
        if brought.name == "diffusion":
            pytest.skip("its network has few linear layers; the others cover this")
        policy = bring(brought.name, brought.folder, lora_rank=2)
        encoded, seed = policy.encode(brought.obs), torch.arange(N)
        with torch.no_grad():
            plain = brought.policy.decide(brought.policy.encode(brought.obs), seed, seed)
            assert torch.allclose(policy.decide(encoded, seed, seed), plain, atol=1e-6)
            for name, parameter in policy.denoiser.named_parameters():
                assert parameter.requires_grad == ("lora_" in name)
                if "lora_B" in name:
                    parameter.fill_(0.05)
            changed = policy.decide(encoded, seed, seed)
            assert not torch.allclose(changed, plain, atol=1e-4)
            policy.denoiser.save(tmp_path)
            again = bring(brought.name, tmp_path)
            assert torch.allclose(again.decide(again.encode(brought.obs), seed, seed), changed, atol=1e-5)


def test_code_in_a_processor_file_is_refused_and_not_run(brought: Brought, tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    for attack in (
        {"class": "subprocess.Popen", "config": {"args": ["touch", str(marker)]}},
        {"registry_name": "device_processor", "class": "subprocess.Popen", "config": {}},
        {"registry_name": "unknown_step", "config": {}},
        {"registry_name": "tokenizer_processor", "config": {"trust_remote_code": True}},
        {"registry_name": "normalizer_processor", "config": {}, "state_file": "../secret.safetensors"},
    ):
        folder = tmp_path / "hostile"
        shutil.copytree(brought.folder, folder, dirs_exist_ok=True)
        content = json.loads((folder / PREPROCESSOR).read_text())
        content["steps"].insert(0, attack)
        (folder / PREPROCESSOR).write_text(json.dumps(content))
        with pytest.raises(UserError, match="nothing was loaded"):
            load(folder)
    assert not marker.exists()


def test_missing_statistics_are_refused(brought: Brought, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(brought.folder, folder)
    for name in (PREPROCESSOR, "policy_postprocessor.json"):
        content = json.loads((folder / name).read_text())
        for step in content["steps"]:
            step.pop("state_file", None)
        (folder / name).write_text(json.dumps(content))
    with tiny.patched(brought.name), pytest.raises(UserError, match="wrong units"):
        load(folder)
    (folder / PREPROCESSOR).unlink()
    with tiny.patched(brought.name), pytest.raises(UserError, match="the file is missing, and without it"):
        load(folder)


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make("act", tmp_path_factory.mktemp("act"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("xvla", "PPO cannot train xvla: each step of its sampler reads the first noise again"),
        ("lingbot_va", "PPO cannot train lingbot_va: it runs one environment at a time"),
        ("smolvle", "unknown policy 'smolvle'; did you mean 'smolvla'?"),
    ],
)
def test_policies_without_likelihood_are_refused(act: Path, tmp_path: Path, kind: str, message: str) -> None:
    folder = tmp_path / "p"
    shutil.copytree(act, folder)
    config = json.loads((folder / "config.json").read_text()) | {"type": kind}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=re.escape(message)):
        load(folder)


def test_weights_that_do_not_fit_are_refused(act: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "p"
    shutil.copytree(act, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.action_head.weight"
    save_file({n: t for n, t in weights.items() if n != name}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"1 weights are missing and 0 unknown, such as {name}"):
        load(folder)
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="not finite; nothing was loaded"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="the weights do not fit"):
        load(folder)


def test_features_are_renamed_and_unknown_names_refused(act: Path) -> None:
    denoiser = LeRobotDenoiser(act, rename={"observation.images.front": "observation.images.top"})
    assert set(denoiser.reads) == {"state", "images.top"}
    with pytest.raises(UserError, match=re.escape("rename: the policy reads no 'images.front'; it reads observation.")):
        LeRobotDenoiser(act, rename={"images.front": "images.top"})


def test_the_known_steps_are_in_the_registry_of_lerobot() -> None:
    import lerobot.policies.factory  # noqa: F401 - registers the steps of all policies
    from lerobot.processor.pipeline import ProcessorStepRegistry

    for kind in ("smolvla", "pi0", "pi05", "vla_jepa"):
        __import__(f"lerobot.policies.{kind}.processor_{kind}")
    assert set(ProcessorStepRegistry.list()) >= STEPS


def test_a_checkpoint_of_ours_is_none_of_lerobot(act: Path) -> None:
    assert is_lerobot(act)
    assert not is_lerobot(Path("world_model/builtin/metaworld-tuned"))


class Still(BatchedEnv):
    """An environment of random observations, to collect a rollout in; the reward is the first action."""

    place = "sim"

    def __init__(self, policy: ChainPolicy, num_envs: int) -> None:
        denoiser = policy.denoiser
        assert isinstance(denoiser, LeRobotDenoiser)
        self.denoiser = denoiser
        super().__init__(spec_of(denoiser), num_envs, denoiser.n_context_frames, max_steps=100)

    def _restart(self, mask: torch.Tensor) -> Start:
        n = int(mask.sum())
        obs = observation(self.denoiser, n, seed=n)
        task = obs.pop("task")
        return Start(obs, task, torch.arange(n))

    def _advance(self, actions: torch.Tensor, limit: torch.Tensor) -> Advance:
        frames = {
            name: values[:, -1:].expand(-1, actions.shape[1], *values.shape[2:])
            for name, values in self.context.items()
        }
        never = torch.zeros(actions.shape[:2], dtype=torch.bool)
        return Advance(frames, never, never, never, task_reward=actions[..., 0])
