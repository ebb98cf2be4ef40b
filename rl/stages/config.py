"""Config schemas of `wamtune pretrain` and `wamtune tune`: every field that a preset or an override may set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rewards.checks import at_least, positive
from rewards.errors import UserError
from rl.config import MISSING, SimulatorConfig, TrackerName
from world_model.data.columns_config import ColumnsConfig
from world_model.wam.config import ModelConfig
from world_model.wam.training_config import StageConfig

if TYPE_CHECKING:
    from world_model.data.episodes import Episode

MOVED = tuple((name, f"env.{name}") for name in ("id", "isaac", "tasks", "n_workers"))
"""Keys of older versions -> their keys now."""


@dataclass(frozen=True)
class PretrainConfig:
    """Collect episodes, or use recorded ones, and train the model to predict the world from them."""

    MOVED = (*MOVED, ("pictures", "codec"))

    name: str = MISSING  # folder below runs/
    # env.tasks in the order of the model's task embedding; env.simulator=recorded: no simulator, collect nothing
    env: SimulatorConfig = field(default_factory=SimulatorConfig)
    seed: int = 0  # of the initial weights; added to stage.seed for the batches
    threads: int = 0  # of torch; 0: all cores
    # share the weights of the layers among the processes of torchrun, for models that are too large for one
    shard: bool = False
    device: str = "auto"  # of the model: cpu, cuda:0, ...; auto: where Isaac Lab is, for its tasks; else the CPU
    tracker: TrackerName = "tensorboard"  # wandb, trackio or mlflow: show the curves there as well, see docs/sweeps.md
    episodes: str = ""  # folder of the episodes; missing ones are collected; empty: runs/episodes/NAME
    dataset: str = ""  # folder of a LeRobot v3.0 dataset, imported to the episodes first; with env.simulator=recorded
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)  # names of the columns in the dataset
    videos: str = ""  # folder with TASK/*.mp4, additional training data for a model with one camera; empty: none
    n_expert: int = 40  # episodes per task of the scripted expert
    n_noisy: int = 60  # of the expert with noise on its actions
    n_random: int = 20  # of random motion
    max_steps: int | None = None  # of an episode at most; null: as many as the simulator says, most of them 150
    n_heldout: int = 20  # for measuring, never trained on: a third by the expert, the rest noisy
    trust_steps: int = 4000  # optimizer steps of the trust calibration on the held-out episodes; 0: none
    half: bool = True  # round the finished weights to half precision and store them so
    model: ModelConfig = field(default_factory=ModelConfig)
    size: str = ""  # xs, s, m, l or xl: widths, layers and heads in place of those of `model`; empty: those of `model`
    # training of the image codec, which comes first; only if model.views names cameras
    codec: StageConfig = field(default_factory=lambda: StageConfig(batch_size=64, learning_rate=2e-3))
    stage: StageConfig = field(default_factory=StageConfig)

    def check(self) -> None:
        """Refuse counts out of range."""
        at_least(self, 0, "seed", "threads", "n_expert", "n_noisy", "n_random", "trust_steps")
        at_least(self, 1, "n_heldout", "max_steps")
        self.model.of_size(self.size)
        # The order of the tasks is that of the model's task embedding, so each may occur once.
        if len(set(self.env.tasks)) < len(self.env.tasks):
            raise UserError(f"env.tasks={list(self.env.tasks)}: expected none of them twice")
        if self.videos and len(self.model.views) != 1:
            raise UserError(f"videos={self.videos}: model.views has {len(self.model.views)} cameras, a video is of one")
        if self.n_expert + self.n_noisy + self.n_random == 0:
            raise UserError("n_expert, n_noisy and n_random are all 0: nothing to learn from; raise one of them")

    @property
    def episode_folder(self) -> str:
        """Return the folder of the episodes."""
        return self.episodes or f"runs/episodes/{self.name}"


@dataclass(frozen=True)
class DemonstrationsConfig:
    """Which of the recorded episodes are demonstrations."""

    episodes: str = ""  # their folder; empty: that of the other episodes
    sources: tuple[str, ...] = ("expert",)  # accepted sources: expert, noisy, import, ...; empty: every source
    success_only: bool = True  # accept only episodes with a success

    def include(self, episode: Episode) -> bool:
        """Whether an episode is a demonstration."""
        return (not self.sources or episode.source in self.sources) and (episode.is_success or not self.success_only)


@dataclass(frozen=True)
class TuneConfig:
    """Learn to act from few demonstrations, then refit the world decoder on rollouts of the tuned policy."""

    MOVED = MOVED

    name: str = MISSING  # folder below runs/
    checkpoint: str = "metaworld-pretrained"  # to tune: a built-in name, a folder or a run folder
    text_encoder: str = ""  # FILE.py:function, the frozen encoder of the checkpoint, which new sentences need
    # env.tasks to act in; env.simulator=recorded: no simulator, so no rollouts and no success rate
    env: SimulatorConfig = field(default_factory=SimulatorConfig)
    episodes: str = MISSING  # folder of the episodes that `wamtune pretrain` collected, or of others
    demonstrations: DemonstrationsConfig = field(default_factory=DemonstrationsConfig)
    seed: int = 0  # added to stage.seed and refit.seed
    threads: int = 0  # of torch; 0: all cores
    # share the weights of the layers among the processes of torchrun, for models that are too large for one
    shard: bool = False
    device: str = "auto"  # of the model: cpu, cuda:0, ...; auto: where Isaac Lab is, for its tasks; else the CPU
    tracker: TrackerName = "tensorboard"  # wandb, trackio or mlflow: show the curves there as well, see docs/sweeps.md
    n_demos: int = 10  # demonstrations per task, the first ones; a task may have fewer
    # exceptions from n_demos, by task (also one that is not tuned): exactly so many, an error if there are fewer
    demos: dict[str, int] = field(default_factory=dict)
    # demonstrations of each task in the checkpoint, with one image a chunk, where images would make it too large; null:
    # all that were learned from, as they were recorded
    n_stored: int | None = None
    n_policy: int = 110  # rollouts per task of the tuned policy for the refit, half of them exploring
    n_policy_heldout: int = 10  # additional rollouts per task, kept for measuring
    max_steps: int | None = None  # of an episode at most; null: as many as the simulator says, most of them 150
    n_denoising_steps: int = 2  # of the policy
    noise_std: float = 0.2  # of the exploring rollouts, as in PPO
    n_eval: int = 100  # episodes per task of the success table
    # standard deviations of white noise on every feature and step, in units of the state; each is one more evaluation
    eval_noise: tuple[float, ...] = (0.001, 0.003)
    trust_steps: int = 4000  # optimizer steps of the trust calibration on the held-out episodes; 0: none
    half: bool = True  # round the finished weights to half precision and store them so
    stage: StageConfig = field(default_factory=lambda: StageConfig(n_steps=5000, atoms=(0.15, 0.7, 0.0, 0.15, 0.0)))
    # n_steps 0: no refit
    refit: StageConfig = field(default_factory=lambda: StageConfig(n_steps=2000, atoms=(0.05, 0.0, 0.8, 0.1, 0.05)))

    def check(self) -> None:
        """Refuse counts out of range."""
        at_least(self, 0, "seed", "threads", "n_policy", "n_policy_heldout", "n_eval", "trust_steps")
        at_least(self, 1, "n_demos", "n_stored", "n_denoising_steps", "max_steps")
        if not all(noise > 0 for noise in self.eval_noise):
            raise UserError(f"eval_noise={list(self.eval_noise)}: expected numbers above 0")
        positive(self, "noise_std")
        for task, n in self.demos.items():
            if n < 1:
                raise UserError(f"demos.{task}={n}: expected at least 1")
