r"""Measure what PPO in the dream, in the simulator and in both gains, next to control methods; print a table.

    python benchmarks/last_mile.py                                      # all missing runs, then the table
    python benchmarks/last_mile.py --methods sim dream --tasks hammer --seeds 0
    python benchmarks/last_mile.py --seeds 20 21 22 --out docs/last_mile        # final figures: seeds not tuned on
    python benchmarks/last_mile.py --methods "all in 150: dream" "all in 150: filtered BC" "all in 150: sim" \
        --seeds 20 21 --out docs/all_in                                         # gates and refit data in the budget
    python benchmarks/last_mile.py --runs 0                             # only the table of the finished runs
    python benchmarks/last_mile.py --checkpoint runs/mine --tasks push door-open --out runs/mine_last_mile
    python benchmarks/last_mile.py --methods "pixels: dream" "pixels: anchor" "pixels: filtered BC" \
        --checkpoint metaworld-pixels-tuned --tasks drawer-open window-open --out runs/pixels

A run is one method on one task from one seed. Its row is appended to OUT/results.jsonl when it is finished. So the
command can be stopped and called again, and several calls may run in parallel. OUT/table.md and OUT/curve.png are made
from all rows. Success is that of the champion on episodes that no gate used: 400 for `dream`, 100 for pixels, 200
otherwise. Simulator steps include those of the gates. `dream`, `mix` and `pixels` are the presets as shipped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from last_mile_table import BUDGETS, Row, draw, share, table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from rewards import RewardManager
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.adapters import StepVecEnv, flatten_obs
from rl.envs.sim import SimEnv
from rl.rounds.evaluate import EpisodeResult, evaluate_sim
from rl.verbs.prepare import control_config, prepare
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.data.windows import Windows
from world_model.env import Obs
from world_model.spec import Spec

TASKS = ("assembly", "box-close", "hand-insert", "peg-insert-side", "hammer", "pick-place-wall")
EVAL_SEED = 7_000_000
GATES = (
    "gate.n_episodes={0} gate.max_episodes={0} gate.n_dreams=0 gate.z_loss=1"  # one block; a loss within noise passes
)
DREAM = "dream eval.n_episodes=400"
SIM = f"sim total_timesteps=240_000 n_rounds=6 {GATES.format(32)} eval.n_episodes=200"
MIX = "mix eval.n_episodes=200"
FEW = "dream n_rounds=3 dream.n_episodes=50 gate.record=false budget_steps=null"
# With only three rollouts, none of them trains the critic alone.
FEW_SIM = (
    "sim n_rounds=3 env.n_envs=50 ppo.n_steps=19 total_timesteps=22_800 ppo.critic_warmup_steps=0 gate.record=false"
)
METHODS = {
    "dream": (DREAM, None),
    "dream: anchor": (DREAM, "anchor"),
    "dream: filtered BC": (DREAM, "filtered_bc"),
    "sim": (SIM, None),
    "sim: filtered BC": (SIM, "filtered_bc"),
    "mix": (MIX, None),
    "mix: filtered BC": (MIX, "filtered_bc"),
    "SB3": ("sim eval.n_episodes=200", None),
    "150 episodes: dream": (FEW, None),
    "150 episodes: frozen dream": (f"{FEW} dream.refit_steps=0", None),
    "150 episodes: filtered BC": (FEW, "filtered_bc"),
    "150 episodes: sim": (FEW_SIM, None),
}
"""Method -> preset with overrides, and the control method it runs as; SB3 is Stable-Baselines3's PPO, see `run_sb3`.

The last four train on 150 episodes, 50 per round; episodes of their gates are not used for training.
"""

ALL_IN = "budget_episodes=150 eval.n_episodes=200"
ALL_IN_DREAM = f"dream {ALL_IN}"
# Three rollouts of 25 episodes; none of them trains the critic alone.
ALL_IN_SIM = f"sim n_rounds=1 env.n_envs=25 ppo.n_steps=19 total_timesteps=11_400 ppo.critic_warmup_steps=0 {ALL_IN}"
WITHIN = {
    "all in 150: dream": (ALL_IN_DREAM, None),
    "all in 150: filtered BC": (ALL_IN_DREAM, "filtered_bc"),
    "all in 150: sim": (ALL_IN_SIM, None),
}
"""150 real episodes for everything: training, refit data and gates; these run only if named with `--methods`."""

PIXELS = "pixels eval.n_episodes=100 eval.n_paired=0"
SEEING = {
    "pixels: dream": (PIXELS, None),
    "pixels: anchor": (PIXELS, "anchor"),
    "pixels: filtered BC": (PIXELS, "filtered_bc"),
}
"""The same for a model with images; these run only if named with `--methods`."""

SWITCHES = {
    "switch: max_expected_error": (f"{FEW} dream.max_expected_error=0.05", None),
    "switch: weigh_by_trust": (f"{FEW} dream.weigh_by_trust=true", None),
    "switch: redream": (f"{FEW} dream.redream=true", None),
}
"""Variants of "150 episodes: dream", each with one use of trust signals; these also run only if named."""

KNOWN = METHODS | WITHIN | SEEING | SWITCHES


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    done = {key(row) for row in read(results, args.checkpoint)}
    missing = [
        (method, task, seed)
        for seed in args.seeds
        for task in args.tasks
        for method in args.methods
        if (method, task, seed) not in done
    ]
    for method, task, seed in missing[: args.runs]:
        row = run(method, task, seed, args.checkpoint)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)
    if rows := read(results, args.checkpoint):
        groups, present = by_method(rows), {row["task"] for row in rows}
        text = table(groups, [t for t in TASKS if t in present] + sorted(present - set(TASKS)))
        (args.out / "table.md").write_text(text, encoding="utf-8")
        draw(groups, args.out / "curve.png")
        print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(KNOWN))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--checkpoint", default=TrainConfig.checkpoint, help="what is fine-tuned")
    parser.add_argument("--runs", type=int, default=10**9, help="at most so many runs, then the table")
    parser.add_argument("--out", type=Path, default=Path("runs/last_mile"))
    return parser.parse_args()


def run(method: str, task: str, seed: int, checkpoint: str) -> Row:
    """Run one method from one seed; `before` and `after` are the outcomes of the episodes, as strings of 0 and 1."""
    first = EVAL_SEED + 10_000 * seed
    begun = time.monotonic()
    common = [f"env.tasks=[{task}]", f"seed={seed}", f"eval.seed={first}", f"checkpoint={checkpoint}"]
    words, control = KNOWN[method]
    preset, *overrides = words.split()
    config = compose(preset, [*overrides, *common], TrainConfig)
    if method == "SB3":
        found = run_sb3(config, task)
    else:
        found = run_ours(control_config(config, control) if control else config)
    named = {"checkpoint": checkpoint, "method": method, "task": task, "seed": seed}
    return named | found | {"minutes": (time.monotonic() - begun) / 60}


def run_ours(config: TrainConfig) -> Row:
    """Post-train as `wamtune train` does."""
    post = prepare(config)
    try:
        outcome = post.run()
    finally:
        post.close()
    return {
        "before": bits(outcome.before),
        "after": bits(outcome.after),
        "curve": [(h.sim_steps + h.gate_steps, share(bits(h.evaluation))) for h in outcome.results],
        "champions": [bits(h.evaluation) for h in outcome.results if h.accepted],
        "with_noise": bits(outcome.with_noise),
        "real_episodes": post.state.explored + 2 * post.state.gate_episodes,  # without PPO in the simulator
        "sim_steps": outcome.sim_steps,
        "gate_steps": outcome.gate_steps,
    }


def run_sb3(config: TrainConfig, task: str) -> Row:
    """Run Stable-Baselines3's PPO with its MLP and defaults, after imitation of the same demonstrations."""
    rewards = RewardManager({"success": {"weight": 1.0}}, (), "sim")
    sim, arena = (
        SimEnv("metaworld", n, [task], n_context_frames=2, n_workers=1, seed=config.seed, rewards=terms)
        for n, terms in ((16, rewards), (64, None))
    )
    env = VecNormalize(StepVecEnv(sim), norm_reward=False)
    ppo = PPO("MlpPolicy", env, seed=config.seed, n_steps=512, batch_size=512, gamma=config.ppo.gamma, device="cpu")
    actor = Actor(ppo, env, sim.spec)
    actor.imitate(Windows(EpisodeStore(find_checkpoint(config.checkpoint)).load(tasks=[task]), [task], 2, 1))
    seeds = config.eval.seeds
    before = bits(evaluate_sim(actor, arena, seeds))
    curve = []
    for budget in BUDGETS:
        ppo.learn(budget - ppo.num_timesteps, reset_num_timesteps=False)
        after = bits(evaluate_sim(actor, arena, seeds))
        curve.append((budget, share(after)))  # SB3 finishes its rollout, so up to one rollout more than the budget
    arena.close()
    env.close()
    steps = ppo.num_timesteps
    return {"before": before, "after": after, "curve": curve, "sim_steps": steps, "gate_steps": 0}


class Actor:
    """A Stable-Baselines3 policy with the interface of `evaluate_sim`; it acts with the mean, one action at a time."""

    def __init__(self, ppo: PPO, env: VecNormalize, spec: Spec) -> None:
        self.ppo, self.env, self.spec = ppo, env, spec

    def imitate(self, windows: Windows, n_steps: int = 2000) -> None:
        """Regress the mean on the demonstrated actions."""
        generator = torch.Generator().manual_seed(0)
        everything = windows.sample(10_000, generator)
        self.env.obs_rms.update(flatten_obs(everything.obs, self.spec).numpy())
        optimizer = torch.optim.Adam(self.ppo.policy.parameters(), lr=1e-3)
        for _ in range(n_steps):
            batch = windows.sample(256, generator)
            obs = self.encode(batch.obs)
            mean = self.ppo.policy.get_distribution(obs).distribution.mean
            loss = (mean - batch.actions[:, 0]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def encode(self, obs: Obs) -> Tensor:
        """Return flat observations, as in the MLP's training. Shape: (n, D)."""
        return torch.as_tensor(self.env.normalize_obs(flatten_obs(obs, self.spec).numpy())).float()

    def decide(self, context: Tensor, seed: Tensor, counter: Tensor) -> Tensor:
        """Return the mean action. Shape: (n, 1, action_dim)."""
        mean: Tensor = self.ppo.policy.get_distribution(context).distribution.mean
        return mean.unsqueeze(1).clamp(-1, 1)


def line(row: Row) -> str:
    """Return one line about a finished run."""
    before, after = share(row["before"]), share(row["after"])
    steps = row["sim_steps"] + row["gate_steps"]
    return (
        f"{row['method']}, {row['task']}, seed {row['seed']}: {100 * before:.1f} -> {100 * after:.1f} %, "
        f"{steps:,} simulator steps, {row['minutes']:.1f} min"
    )


def read(results: Path, checkpoint: str) -> list[Row]:
    """Return the rows of finished runs that started from `checkpoint`."""
    rows = [json.loads(text) for text in results.read_text("utf-8").splitlines()] if results.is_file() else []
    return [row for row in rows if row["checkpoint"] == checkpoint]


def key(row: Row) -> tuple[str, str, int]:
    """Return the key that identifies a run of a checkpoint."""
    return row["method"], row["task"], row["seed"]


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return method -> rows, for methods with rows, in the order of `KNOWN`."""
    groups = {method: [row for row in rows if row["method"] == method] for method in KNOWN}
    return {method: of for method, of in groups.items() if of}


def bits(results: Iterable[EpisodeResult]) -> str:
    """Return the outcomes as a string of 0 and 1, in the order of the seeds."""
    return "".join(str(int(r.success)) for r in results)


if __name__ == "__main__":
    main()
