"""Let WAMProbe, a package of others, judge the dream of a checkpoint by counterfactuals.

    pip install wamprobe==0.1.0
    python benchmarks/outside_judge.py [CHECKPOINT] [--tasks TASK ...] [--n-contexts 48]

The checkpoint's own policy brings the simulator into a state; from this same state the hand then moves for two chunks
to each of four sides of the table, or not at all, in the simulator and in the dream. WAMProbe compares the futures in
the plane of the table: hand and object. The score of a future is the distance of the object to its goal, in metres.
Rows are the dream and WAMProbe's baselines: the simulator itself (`oracle-simulator`), nothing ever moves (`copy-
last-frame`), the opposite action (`wrong-direction`), the best action whatever is asked (`action-agnostic`). Columns
(WAMProbe 0.1.0):

| column | asks |
|---|---|
| `dependence` | does the action matter? Distances between predicted ends over those of true ones, at most 1 |
| `direction` | is the response right? Cosine of predicted and true movement |
| `state_fde` | distance of predicted and true last state, in metres |
| `ranking` | are the actions ordered by their score as in the simulator? Spearman's correlation |
| `regret` | what is lost by taking the action that the prediction likes best, in metres |
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass, field

import torch
from torch import Tensor
from wamprobe.adapters.manipulation import (
    ActionAgnosticManipulationAdapter,
    CopyLastManipulationAdapter,
    OracleManipulationAdapter,
    WrongDirectionManipulationAdapter,
)
from wamprobe.api import (
    FutureRepresentation,
    ManipulationAction,
    ManipulationContext,
    ManipulationInterventionGroup,
    ManipulationInterventionSuite,
    ManipulationState,
    ManipulationTrajectory,
    ModelCapabilities,
    RobotObservation,
    Vec2,
)
from wamprobe.manipulation_evaluation import evaluate_manipulation

from rl.envs.sim import SimEnv
from rl.policies.wam import flow_policy
from world_model.env import Obs
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

TASKS = "push", "drawer-open", "door-open", "window-open"
SEED = 7_500_000
"""Of the first episode; no checkpoint was trained, selected or evaluated on these episodes."""

PREFIXES = 1, 2, 3, 4, 5, 6
"""Chunks of the policy before the actions part."""

N_CHUNKS = 2
ACTIONS = {"noop": (0.0, 0.0), "left": (-1.0, 0.0), "right": (1.0, 0.0), "away": (0.0, 1.0), "near": (0.0, -1.0)}
OPPOSITE = {"noop": "noop", "left": "right", "right": "left", "away": "near", "near": "away"}
COLUMNS = {
    "dependence": "action_dependence",
    "direction": "counterfactual_direction_accuracy",
    "state_fde": "state_fde",
    "ranking": "candidate_ranking_spearman",
    "regret": "top1_regret",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="metaworld-tuned")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--n-contexts", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.checkpoint)
    print(f"{'task':>14} {'model':>18}", *(f"{name:>11}" for name in COLUMNS))
    for task in options.tasks:
        futures = branch(model, task, options.n_contexts)
        judges = [
            Dream(futures, options.checkpoint),
            OracleManipulationAdapter(futures),
            CopyLastManipulationAdapter(),
            WrongDirectionManipulationAdapter(futures),
            ActionAgnosticManipulationAdapter(futures),
        ]
        for judge in judges:
            found = evaluate_manipulation(judge, futures, futures.make_suite())
            cells = (f"{found.metrics[key]:>11.3f}" for key in COLUMNS.values())
            print(f"{task:>14} {found.model_id:>18}", *cells, flush=True)


@dataclass
class Futures:
    """The true and dreamed futures of all contexts and actions; a benchmark as WAMProbe has them."""

    benchmark_id: str
    horizon: int
    contexts: dict[str, ManipulationContext] = field(default_factory=dict)
    true: dict[tuple[str, str], ManipulationTrajectory] = field(default_factory=dict)
    dreamed: dict[tuple[str, str], ManipulationTrajectory] = field(default_factory=dict)

    def actions(self) -> tuple[ManipulationAction, ...]:
        """Return the candidate actions."""
        return tuple(ManipulationAction(name, Vec2(*delta)) for name, delta in ACTIONS.items())

    def rollout(
        self, context: ManipulationContext, action: ManipulationAction, *, noise_std: float = 0.0, seed: int = 0
    ) -> ManipulationTrajectory:
        """Return what happened in the simulator."""
        return self.true[context.context_id, action.name]

    def score(self, context: ManipulationContext, trajectory: ManipulationTrajectory) -> float:
        """Return the negative distance of object and goal at the end, in metres."""
        return -(trajectory.final_state.object_position - context.goal).norm()

    def make_suite(self, *, contexts: int = 0, seed: int = 0) -> ManipulationInterventionSuite:
        """Return all contexts with all actions."""
        groups = (ManipulationInterventionGroup(context, self.actions()) for context in self.contexts.values())
        return ManipulationInterventionSuite(self.benchmark_id, tuple(groups))

    def optimal_action(self, context: ManipulationContext) -> ManipulationAction:
        """Return the action with the best score in the simulator."""
        return max(self.actions(), key=lambda action: self.score(context, self.rollout(context, action)))

    def reverse_action(self, action: ManipulationAction) -> ManipulationAction:
        """Return the action to the opposite side."""
        return next(other for other in self.actions() if other.name == OPPOSITE[action.name])

    def observe(self, context: ManipulationContext, state: ManipulationState) -> RobotObservation:
        """Images are not part of this judgement."""
        raise NotImplementedError


class Dream:
    """The dream as WAMProbe asks for it."""

    def __init__(self, futures: Futures, name: str) -> None:
        self.futures = futures
        self.capabilities = ModelCapabilities(name, FutureRepresentation.STATES)

    def predict_future(
        self, context: ManipulationContext, action: ManipulationAction, *, horizon: int, seed: int
    ) -> ManipulationTrajectory:
        """Return what was dreamed."""
        return self.futures.dreamed[context.context_id, action.name]

    def close(self) -> None:
        """Nothing is open."""


@torch.no_grad()
def branch(model: WorldActionModel, task: str, n_contexts: int) -> Futures:
    """Bring the simulator into each context once for every action, and let it and the dream go on with the action."""
    size, names = model.config.chunk_size, list(ACTIONS)
    futures = Futures(f"metaworld-{task}", N_CHUNKS * size)
    moves = torch.tensor([[*delta, 0.0, -1.0] for delta in ACTIONS.values()])
    seeds = torch.arange(SEED, SEED + n_contexts)
    for prefix in PREFIXES:
        own = seeds[prefix - PREFIXES[0] :: len(PREFIXES)]
        rows = own.repeat_interleave(len(names))
        env = SimEnv(
            "metaworld",
            len(rows),
            [task],
            model.n_context_frames,
            task_names=model.spec.tasks,
            features=model.spec.features,
            terminate_on_success=False,
        )
        policy = flow_policy(model, env)
        with contextlib.closing(env):
            env.set_episode_seeds(rows.tolist())
            obs = env.reset()
            for i in range(prefix):  # rows of one seed do the same
                obs = env.step_chunk(policy.decide(policy.encode(obs), rows, torch.full_like(rows, i))).obs
            actions = moves.repeat(len(own), 1)[:, None].expand(-1, size, -1)
            true = torch.cat([env.step_chunk(actions).frames["state"] for _ in range(N_CHUNKS)], 1)
        _add(futures, model, obs, own, true, dream(model, obs, actions, rows))
    return futures


def dream(model: WorldActionModel, obs: Obs, actions: Tensor, seed: Tensor) -> Tensor:
    """Return the dreamed states (n, N_CHUNKS * k, size)."""
    session, states = model.begin(obs, seed), []
    for _ in range(N_CHUNKS):
        session, prediction = model.predict(session, actions)
        states.append(prediction.frames["state"])
    return torch.cat(states, 1)


def _add(futures: Futures, model: WorldActionModel, obs: Obs, seeds: Tensor, true: Tensor, dreamed: Tensor) -> None:
    """Add contexts, true and dreamed futures; rows have all actions of the first seed, then those of the next one."""
    for i, seed in enumerate(seeds.tolist()):
        name = f"episode {seed}"
        first = obs["state"][i * len(ACTIONS), -1]
        assert (obs["state"][i * len(ACTIONS) : (i + 1) * len(ACTIONS), -1] == first).all()  # one state for all actions
        goal = first[model.spec.slices["goal_pos"]]
        futures.contexts[name] = ManipulationContext(name, _state(model, first), Vec2(float(goal[0]), float(goal[1])))
        for j, action in enumerate(ACTIONS):
            row = i * len(ACTIONS) + j
            for found, states in ((futures.true, true), (futures.dreamed, dreamed)):
                found[name, action] = ManipulationTrajectory(name, action, tuple(_state(model, s) for s in states[row]))


def _state(model: WorldActionModel, state: Tensor) -> ManipulationState:
    """Return hand and object of a state (size,), in the plane of the table."""
    hand, thing = (state[model.spec.slices[name]] for name in ("hand_pos", "object_pos"))
    return ManipulationState(Vec2(float(hand[0]), float(hand[1])), Vec2(float(thing[0]), float(thing[1])))


if __name__ == "__main__":
    main()
