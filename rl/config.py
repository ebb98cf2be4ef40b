"""The schema of `wamtune train`: every field a preset or a `key=value` override may set, with its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from rewards.checks import at_least, between_0_1, positive, require, within_0_1
from rewards.errors import UserError
from rl.seeds import EVAL, GATE, GUARD, TWIN

T = TypeVar("T")

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
"""Where a run shows its curves; TensorBoard's files are always written."""

MISSING: Any = "???"
"""Value of a field that a preset or the command line must set; OmegaConf's marker for a missing value."""


@dataclass(frozen=True)
class SimulatorConfig:
    """Where episodes run; these keys are the same in every verb."""

    simulator: str = ""  # metaworld, gymnasium, isaac, recorded, FILE.py:Class, module:Class; empty: chosen by env.id
    id: str = ""  # of one environment, such as Pendulum-v1 or Isaac-Cartpole; empty: Meta-World, which has no ids
    # spread over the environments; empty or all: those that the checkpoint knows; mt50, ml45 and ml45-test are sets
    tasks: tuple[str, ...] = ()
    instructions: dict[str, str] = field(default_factory=dict)  # task -> sentence, stored with episodes and model
    # task -> list of further sentences, for the training of models that read sentences
    wordings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)  # of the simulator, which checks them
    n_workers: int = 0  # worker processes for Meta-World and gymnasium; 0: none; in train and eval one per thread

    # Pairs (key, owner): when a later layer changes the owner, `compose` drops the key of the preset. The tasks of a
    # preset belong to one environment, its options and id to one simulator.
    BELONGS = (("tasks", "id"), ("tasks", "simulator"), ("options", "simulator"), ("id", "simulator"))

    @staticmethod
    def migrate(values: dict[str, Any]) -> dict[str, Any]:
        """Convert the group `env` of an older version to the keys of this version."""
        return _migrated(values)

    def check(self) -> None:
        """Refuse a negative number of workers, and wordings that are no lists of sentences."""
        at_least(self, 0, "n_workers")
        for task, texts in self.wordings.items():
            if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"env.wordings.{task}={texts!r:.80}: expected a list of sentences, such as [Open it.]")

    @property
    def further_wordings(self) -> dict[str, tuple[str, ...]]:
        """Return `wordings` with the type that a `Spec` has."""
        return {task: tuple(texts) for task, texts in self.wordings.items()}


def _migrated(values: dict[str, Any]) -> dict[str, Any]:
    """Move the old groups `isaac` and `events` to `options`, and an `id` that names a simulator to `simulator`."""
    values = dict(values)
    for old, (option, default) in OLD_OPTIONS.items():
        if old in values and (group := values.pop(old)) != default:
            values["options"] = _merged({option: group} if option else group, values.get("options", {}))
    if isinstance(id := values.get("id"), str) and id in OLD_IDS:
        values = {"simulator": OLD_IDS[id]} | values | {"id": ""}
    return values


def _merged(old: Any, new: Any) -> Any:
    """Merge two groups of keys; if one is not a group, return that one, so that the config check reports it."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | new
    return new if isinstance(old, dict) else old


OLD_IDS = {"metaworld": "", "recorded": "recorded"}
"""Simulator names that older versions wrote as `id` -> the value of `simulator` now."""

OLD_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "isaac": (
        "",
        {"groups": ["policy"], "success": "success", "action_bound": 1.0, "overrides": [], "device": "auto"},
    ),
    "events": ("events", {}),
}
"""Group of `env` in older versions -> (its option now; "": it holds all options, its default value).

Every old run folder contains these groups, whatever its simulator, so a group with its default value is dropped.
"""


@dataclass(frozen=True)
class EnvConfig(SimulatorConfig):
    """The simulator, and whether PPO trains in it, in the dream or in both."""

    kind: Literal["sim", "dream", "mix"] = "sim"  # where PPO collects its rollouts; evaluation is always in `sim`
    n_envs: int = 64  # parallel environments of the simulator
    max_steps: int = 150  # after which an episode is truncated
    terminate_on_success: bool = True  # end an episode at its first success; false: go on to max_steps
    action_delay: int = 0  # steps between a command and its execution
    obs_noise: float = 0.0  # standard deviation added to observations, in units of the state

    def check(self) -> None:
        """Refuse counts and standard deviations out of range."""
        super().check()
        at_least(self, 1, "n_envs", "max_steps")
        at_least(self, 0, "action_delay", "obs_noise")


@dataclass(frozen=True)
class WorldModelConfig:
    """A world model of your own: FILE.py:Class, module:Class or the entry point of an installed package."""

    func: str = MISSING
    params: dict[str, Any] = field(default_factory=dict)  # arguments of the class


ChosenWorldModel = Annotated[Any, str, WorldModelConfig]
"""FILE.py:Class or module:Class, or a world model given by func and params."""


@dataclass(frozen=True)
class DreamConfig:
    """Training in the dream: branches of the world model that begin in first states of simulated episodes."""

    world_model: ChosenWorldModel = ""  # FILE.py:Class that dreams; empty or wam: that of `checkpoint`
    n_envs: int = 256  # branches dreamed in parallel
    horizon: int = 20  # whole chunks, whatever n_action_steps is; a branch that has not ended then is truncated
    n_denoising_steps: int = 1  # of the future frames
    n_rounds: int | None = None  # with env.kind=mix: dream in this many rounds, then simulate; null: both in each round
    n_updates: int = 10  # PPO updates in the dream per round
    n_epochs: int = 5  # of an update in the dream
    n_starts: int = 256  # fresh resets of the simulator per round, in which dreams begin; they execute no step
    success_bc_coef: float = 0.1  # imitation of dreamed successes, while training in the dream
    ref_kl_coef: float = 0.005  # ppo.ref_kl_coef in the dream, which is reliable only near executed actions
    rollback_factor: float = 4.0  # ref_kl_coef is multiplied by it whenever the gate rolls a dream back
    # stop dreaming after so many in a row without gain and with wider gap; null, or where no success is reported: never
    max_widenings: int | None = 2
    # truncate a branch whose expected error is larger: of the object, in metres; with images, in normalised units
    max_expected_error: float | None = None
    pessimism: float = 0.1  # subtracted from the value that such a branch is bootstrapped with
    weigh_by_trust: bool = False  # weight of a chunk falls with its expected error: one half at the median error
    redream: bool = False  # dream each success again with new noise; one that fails then gets weight 0
    # signals of your own, name: {func, weight, params}, or null; a chunk's weight is the product of all signals
    trust: dict[str, Any] = field(default_factory=dict)
    n_episodes: int = 0  # exploring episodes in the simulator before each dream; their steps count as training
    # half of these episodes have no noise, and the noise of PPO, at most ppo.noise_std, is set before each dream so
    # that exploring keeps this share of the success without noise; null: all have the noise ppo.noise_std
    noise_keeps: float | None = None
    # known: on a task that the checkpoint was never trained on, they act as on tasks that it knows, until one succeeds
    explore_as: Literal["own", "known"] = "own"
    imitation_steps: int = 0  # optimizer steps of imitation, of collected successes as well, before each refit
    refit_steps: int = 700  # of the world decoder before a dream, on all episodes recorded so far; 0: no refit
    later_refits: float = 0.33  # share of refit_steps before all dreams but the first: these refits go on from it
    refit_learning_rate: float = 1e-3  # of the world decoder in a refit
    # tasks whose recorded successes and failures a refit also teaches to the read-out of success: those on which the
    # checkpoint was never trained, all, or none
    refit_read_out: Literal["unseen", "all", "none"] = "unseen"

    @property
    def brought(self) -> WorldModelConfig | None:
        """Return the world model that somebody brings, by func and params; None: that of `checkpoint` dreams.

        Raises:
            UserError: it has params, but no func.
        """
        chosen = _func_and_params("world_model", self.world_model, WorldModelConfig)
        chosen = WorldModelConfig(self.world_model) if chosen is None else chosen
        return None if chosen.func in ("", "wam") else chosen

    @property
    def reads_trust(self) -> bool:
        """Whether any setting uses the expected error of the world model."""
        entries = self.signals.items()
        return self.max_expected_error is not None or "expected_error" in (_func_of(*entry) for entry in entries)

    @property
    def signals(self) -> dict[str, Any]:
        """Return the active trust signals, name -> {func, weight, params}; entries of `trust` override the switches."""
        ours: dict[str, Any] = {
            "expected_error": {} if self.weigh_by_trust else None,
            "redream": {} if self.redream else None,
        }
        return {name: entry for name, entry in (ours | self.trust).items() if _is_on(entry)}

    def check(self) -> None:
        """Refuse counts that mean nothing."""
        _ = self.brought
        at_least(self, 1, "n_envs", "horizon", "n_denoising_steps", "n_epochs", "n_starts")
        at_least(self, 0, "n_updates", "n_episodes", "imitation_steps", "refit_steps")
        at_least(self, 0, "success_bc_coef", "ref_kl_coef", "pessimism")
        at_least(self, 1, "rollback_factor")
        positive(self, "refit_learning_rate")
        within_0_1(self, "later_refits")
        between_0_1(self, "noise_keeps")
        at_least(self, 1, "max_widenings", "n_rounds")
        positive(self, "max_expected_error")


@dataclass(frozen=True)
class ScheduleConfig:
    """A number that changes during training: `linear` with start and end, or a function that returns a schedule."""

    func: str = MISSING
    params: dict[str, Any] = field(default_factory=dict)


Scheduled = Annotated[Any, float, ScheduleConfig]
"""A number, or a schedule given by func and params."""


@dataclass(frozen=True)
class PPOConfig:
    """PPO on chunks, with the names of Stable-Baselines3. The loss sums `coef * loss`; nothing else scales it."""

    n_steps: int = 40  # whole chunks per environment and rollout, whatever n_action_steps is
    fresh_rollouts: bool = False  # reset before each rollout: more first states, but no later parts of long episodes
    batch_size: int = 512  # decisions, each of n_action_steps
    n_epochs: int = 8  # of an update in the simulator; dream.n_epochs is the one for the dream
    learning_rate: Scheduled = 2e-4  # of the action side; {func: linear, params: {start: 2e-4, end: 0}} changes it
    critic_learning_rate: float = 1e-3  # of the value function
    critic_warmup_steps: int = 400  # optimizer steps on a first rollout that trains the critic alone; 0: no warm-up
    gamma: float = 0.999  # per environment step
    gae_lambda: float = 0.95  # trade-off of bias and variance of the advantages, per decision
    clip_range: Scheduled = 0.2  # of the likelihood ratio; a number or a schedule
    target_kl: float | None = 10.0  # stop the epochs of an update beyond 1.5 times this KL of a chunk; null: never
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this length
    n_denoising_steps: int | None = None  # null: as many as the policy's own sampler takes, 2 for `flow`
    noise_std: float = 0.2  # of each denoising step, in normalised action units
    noise_correlation: float = 0.8  # of the noise of neighbouring actions in a chunk
    pg_coef: float = 1.0  # policy gradient; 0 is a control: "filtered BC", or without success_bc_coef "anchor alone"
    vf_coef: float = 0.5  # loss of the value function
    ent_coef: float = 0.0  # entropy bonus, for policies whose entropy can change, such as `gaussian`
    bc_coef: float = 0.1  # flow-matching loss on the demonstrations of the checkpoint
    success_bc_coef: float = 0.1  # the same on collected successes
    imitation_steps: int = 500  # optimizer steps of imitation alone, in the first round; 0: no imitation part
    bc_batch_size: int = 128  # windows drawn of demonstrations, and as many of each kind of successes
    ref_kl_coef: float = 0.0  # penalty on the distance to the policy at the start of the current phase

    def check(self) -> None:
        """Refuse counts, rates and shares out of range."""
        at_least(self, 1, "n_steps", "batch_size", "n_epochs", "bc_batch_size", "n_denoising_steps")
        at_least(self, 0, "critic_warmup_steps", "imitation_steps")
        at_least(self, 0, "pg_coef", "vf_coef", "ent_coef", "bc_coef", "success_bc_coef", "ref_kl_coef")
        positive(self, "critic_learning_rate", "max_grad_norm", "noise_std")
        positive(self, *(n for n in ("learning_rate", "clip_range") if not isinstance(getattr(self, n), Mapping)))
        within_0_1(self, "gamma", "gae_lambda", "noise_correlation")
        require(self, ("noise_correlation",), lambda value: value < 1, "less than 1: some noise must be its own")
        positive(self, "target_kl")


@dataclass(frozen=True)
class GateConfig:
    """The paired test after each phase of a round: champion against challenger on fresh seeds, see docs/gates.md."""

    enabled: bool = True  # false: every new policy is accepted
    places: tuple[str, ...] = ("imitation", "sim", "dream")  # parts with a gate; the others are accepted without one
    record: bool = True  # add the gate's episodes to the data of imitation and dream
    n_episodes: int = 8  # of one block, after which the gate may stop; rounded up to whole turns of the tasks
    # blocks are added until the decision is settled, up to this many episodes or the gate's share of the budget
    max_episodes: int = 192
    # with several tasks: most fresh pairs of each task that lost pairs in a gate, to see whether it got worse; a policy
    # that made one worse is rolled back; 0: only the mean over tasks counts
    n_guard: int = 16
    n_dreams: int = 4  # in runs that dream: fresh dreams beside the dreamed twin of each episode; 0: no twins
    alpha: float = 0.2  # probability that chance alone makes any verdict of the run clear; shared equally by its gates
    z_loss: float = 0.0  # roll back a loss of at least this many standard errors; 0: any loss
    seed: int = GATE.start  # first seed of the blocks; evaluation and training never use them

    def check(self) -> None:
        """Refuse numbers out of range and unknown places."""
        at_least(self, 1, "n_episodes")
        at_least(self, self.n_episodes, "max_episodes")
        at_least(self, 0, "z_loss", "n_dreams", "n_guard")
        between_0_1(self, "alpha")
        if unknown := set(self.places) - {"imitation", "sim", "dream"}:
            raise UserError(f"places: unknown {sorted(unknown)[0]!r}, expected any of imitation, sim, dream")


@dataclass(frozen=True)
class EvalConfig:
    """The evaluation before and after training, on seeds that no gate and no selection ever used."""

    n_episodes: int = 200  # before training and after it, the same ones; more give narrower intervals
    n_paired: int = 100  # how many of them are dreamed as well, for the report; 0: none
    seed: int = EVAL.start  # of the first episode
    # White noise on observations in one more evaluation of the champion, as env.obs_noise: 0.001 is 1 mm of a position;
    # 0: there is none
    obs_noise: float = 0.001

    @property
    def seeds(self) -> range:
        """Return the seeds of the episodes."""
        return range(self.seed, self.seed + self.n_episodes)

    def check(self) -> None:
        """Refuse counts out of range."""
        at_least(self, 1, "n_episodes")
        at_least(self, 0, "n_paired", "obs_noise")


CONTROLS: dict[str, dict[str, dict[str, Any]]] = {
    "anchor": {"ppo": {"pg_coef": 0.0, "success_bc_coef": 0.0}, "dream": {"success_bc_coef": 0.0}},
    "filtered_bc": {"ppo": {"pg_coef": 0.0, "success_bc_coef": 1.0}, "dream": {"success_bc_coef": 0.0}},
    "unsafe_dream": {
        "ppo": {"bc_coef": 0.0, "success_bc_coef": 0.0, "target_kl": None},
        "dream": {"success_bc_coef": 0.0, "ref_kl_coef": 0.0, "refit_steps": 0, "max_expected_error": None}
        | {"weigh_by_trust": False, "redream": False, "trust": {}},
        "gate": {"enabled": False},
    },
}
"""Fields that a control changes: the anchor alone, imitation of the simulator's successes, RL without any guard."""


@dataclass(frozen=True)
class PolicyConfig:
    """A policy by name: `flow`, `gaussian`, `lerobot`, or a class of your own as FILE.py:Class or module:Class."""

    func: str = MISSING
    params: dict[str, Any] = field(default_factory=dict)  # arguments of the class


Chosen = Annotated[Any, str, PolicyConfig]
"""`flow`, `gaussian`, a checkpoint of LeRobot, FILE.py:Class, module:Class, or a policy given by func and params."""


@dataclass(frozen=True)
class TrainConfig:
    """One run of post-training."""

    name: str = MISSING  # folder below runs/
    episodes: str = ""  # folder of recorded episodes, for example of a robot, to refit the dream on and to imitate
    checkpoint: str = "metaworld-tuned"  # a built-in name or a folder: the policy `flow`, and what dreams by default
    instruction: str | None = None  # of the one task in env.tasks, for policies that read sentences; null: the usual
    text_encoder: str = ""  # FILE.py:function, the frozen encoder of the checkpoint, which new sentences need
    # flow: the checkpoint's action side; gaussian: a new MLP; or yours: a folder of LeRobot, or FILE.py:Class
    policy: Chosen = "flow"
    # folder of episodes, a LeRobot dataset or a built-in checkpoint, for the anchor; empty: those of `checkpoint`
    demonstrations: str = ""
    seed: int = 0  # of exploring, batches and new weights; evaluations and gates have their own
    threads: int = 0  # of torch in each process; 0: all cores, shared by the processes of torchrun
    device: str = "auto"  # of model and dream: cpu, cuda:0, ...; auto: where Isaac Lab is, for its tasks; else the CPU
    total_timesteps: int = 100_000  # executed simulator steps, to the nearest rollout; evaluation and gate not counted
    # Simulator steps of the run at most, all in: training and gates, evaluation not counted; null: no limit
    budget_steps: int | None = None
    # Real episodes of each task at most, all in; a rollout of PPO counts as its steps / env.max_steps; null: no limit
    budget_episodes: int | None = None
    n_rounds: int = 4  # each: PPO in the simulator and/or the dream, with a gate after each
    n_action_steps: int = 8  # number of actions of a chunk that are executed
    # torch's setting while policy and dream train, not in gates and evaluations: medium multiplies float32 in bfloat16
    # where the processor has it, high in TF32 on a GPU
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    # with several tasks: the part of the environments that is divided by p (1 - p), with p the success of a task; the
    # rest is divided equally; 0: all equally
    steer: float = 0.5
    on_bad_numbers: Literal["stop", "go_back"] = "stop"  # go_back: to the last saved state, with new random numbers
    save_minutes: float = 5.0  # between saved states within a phase; the end of a phase is always saved
    tracker: TrackerName = "tensorboard"  # wandb, trackio or mlflow: show the curves there as well, see docs/sweeps.md
    controls: tuple[str, ...] = ()  # repeat the run with these changes, to compare: anchor, filtered_bc, unsafe_dream
    env: EnvConfig = field(default_factory=EnvConfig)
    dream: DreamConfig = field(default_factory=DreamConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    # name: {func, weight, params}, or null to switch a term off
    rewards: dict[str, Any] = field(default_factory=lambda: {"success": {"weight": 1.0}})
    callbacks: dict[str, Any] = field(default_factory=dict)  # of SB3 or your own, name: {func, params}; null is off

    @property
    def learns_from_dreams(self) -> bool:
        """Whether dreamed rollouts enter any loss; in some controls they do not, so dreaming is skipped."""
        return any((self.ppo.pg_coef, self.ppo.ref_kl_coef, self.dream.success_bc_coef))

    def n_decisions(self, n_chunks: int, chunk_size: int) -> int:
        """Return how many decisions of `n_action_steps` steps last as long as `n_chunks` whole chunks, rounded up."""
        return -(-n_chunks * chunk_size // self.n_action_steps)

    def places(self, round_index: int, can_imitate: bool) -> list[str]:
        """Return the phases of a round in order: imitation (in the first round alone), sim, dream."""
        kind: str = self.env.kind
        if kind == "mix" and self.dream.n_rounds is not None:
            kind = "dream" if round_index < self.dream.n_rounds else "sim"
        places = {"sim": ("imitation", "sim"), "dream": ("imitation", "dream"), "mix": ("sim", "imitation", "dream")}
        imitates = can_imitate and self.ppo.imitation_steps > 0 and round_index == 0
        return [place for place in places[kind] if place != "imitation" or imitates]

    def n_gates(self, can_imitate: bool) -> int:
        """Return the number of gates in the whole run."""
        rounds = (self.places(i, can_imitate) for i in range(self.n_rounds))
        return self.gate.enabled * sum(place in self.gate.places for places in rounds for place in places)

    @property
    def evaluated_noise(self) -> float:
        """Return the noise of one more evaluation of the champion; 0: the others have as much already, or it is off."""
        return self.eval.obs_noise if self.eval.obs_noise > self.env.obs_noise else 0.0

    @property
    def actor(self) -> PolicyConfig:
        """Return the policy by func and params, also if it is given by a single word.

        Raises:
            UserError: it has params, but no func.
        """
        if (chosen := _func_and_params("policy", self.policy, PolicyConfig)) is not None:
            return chosen
        if self.policy in ("flow", "gaussian") or ":" in self.policy.removeprefix("hf://"):
            return PolicyConfig(self.policy)
        return PolicyConfig("lerobot", {"checkpoint": self.policy})

    @property
    def starts_from(self) -> str:
        """Return in words which policy the run begins with."""
        actor = self.actor
        named = {"flow": self.checkpoint, "gaussian": "a Gaussian MLP"}
        return named.get(actor.func) or str(actor.params.get("checkpoint", actor.func))

    @property
    def uses_model(self) -> bool:
        """Whether the run needs the world-action model of `checkpoint`: as the policy, or to dream."""
        return self.actor.func == "flow" or (self.env.kind != "sim" and self.dream.brought is None)

    def check(self) -> None:
        """Refuse combinations of fields that do not fit together, and numbers out of range."""
        at_least(self, 0, "seed", "threads", "save_minutes")
        at_least(self, 1, "total_timesteps", "n_rounds", "n_action_steps")
        within_0_1(self, "steer")
        at_least(self, 1, "budget_steps", "budget_episodes")
        func = self.actor.func
        if func == "gaussian" and self.env.kind != "sim" and self.dream.brought is None:
            raise UserError(
                f"policy=gaussian has no dream, so env.kind={self.env.kind} cannot be; set env.kind=sim, or bring a "
                "world model with dream.world_model=FILE.py:Class"
            )
        if self.env.kind == "mix" and self.n_rounds <= (self.dream.n_rounds or 0):
            raise UserError(f"dream.n_rounds={self.dream.n_rounds}: expected fewer than n_rounds={self.n_rounds}")
        if func in ("flow", "lerobot") and self.ppo.ent_coef > 0:
            raise UserError(f"ppo.ent_coef={self.ppo.ent_coef}: policy={func} has a fixed entropy; set it to 0")
        if func == "gaussian" and self.dream.noise_keeps is not None:
            raise UserError("dream.noise_keeps: policy=gaussian learns its noise; leave dream.noise_keeps out")
        if not any(_is_on(term) for term in self.rewards.values()):
            raise UserError(
                "rewards: no term is switched on, so there is nothing to learn; set rewards.success.weight=1"
            )
        if unknown := set(self.controls) - set(CONTROLS):
            raise UserError(f"controls: unknown {sorted(unknown)[0]!r}, expected any of {', '.join(CONTROLS)}")
        if func == "gaussian" and self.controls:
            raise UserError("policy=gaussian has nothing to imitate, so there are no controls; leave controls out")
        # Gates and evaluation must use separate seeds, and stay within their ranges of `rl.seeds`.
        gates = range(self.gate.seed, self.gate.seed + self.n_gates(True) * self.gate.max_episodes)
        judged = self.eval.seeds
        if self.n_gates(True) * self.gate.n_guard > len(GUARD):
            most = len(GUARD) // self.n_gates(True)
            raise UserError(f"gate.n_guard={self.gate.n_guard}: expected at most {most:,} in a run of so many rounds")
        if len(gates) * self.gate.n_dreams > len(TWIN):
            raise UserError(
                f"gate.n_dreams={self.gate.n_dreams}: gates of up to {len(gates):,} episodes would dream from more "
                f"than {len(TWIN):,} fresh starts; lower it, or gate.max_episodes"
            )
        for name, seeds in (("gate", gates), ("eval", judged)):
            if func != "gaussian" and not GATE.start <= seeds.start <= seeds.stop <= EVAL.stop:
                raise UserError(f"{name}.seed={seeds.start}: expected {GATE.start} to {EVAL.stop - len(seeds)}")
        if gates.start < judged.stop and judged.start < gates.stop:
            raise UserError(f"eval.seed={judged.start}: gates may use {gates.start} to {gates.stop}; choose others")
        n_envs = self.dream.n_envs if self.env.kind == "dream" else self.env.n_envs
        n_chunks = n_envs * (self.dream.horizon if self.env.kind == "dream" else self.ppo.n_steps)
        if self.ppo.batch_size > n_chunks:
            raise UserError(f"ppo.batch_size={self.ppo.batch_size} exceeds a rollout of {n_chunks} chunks; lower it")


def _func_and_params(key: str, written: Any, kind: type[T]) -> T | None:
    """Return what is written as func and params; None: it is a single word.

    Raises:
        UserError: it has params, but no func.
    """
    if isinstance(written, Mapping):
        if "func" not in written:
            raise UserError(f"{key}: func is missing; write {key}={{func: FILE.py:Class, params: {{...}}}}")
        return kind(**written)
    return written if isinstance(written, kind) else None


def _is_on(entry: Any) -> bool:
    """Whether a reward term or trust signal is on; a malformed entry counts as on; the builder reports it."""
    return entry is not None and not (isinstance(entry, dict) and entry.get("weight") == 0)


def _func_of(name: str, entry: Any) -> Any:
    """Return the `func` of an entry; without one, its name, which then means the built-in of that name."""
    return (isinstance(entry, dict) and entry.get("func")) or name
