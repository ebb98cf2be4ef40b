"""Config schemas of the verbs without presets: `eval`, `rank`, `dream`, `deploy ... export`, `serve`, `fit`, ...

They are separate from the verbs, so that help and the check of a command line need no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.checks import at_least, require
from rewards.errors import UserError
from rl.config import Chosen, ChosenWorldModel, DreamConfig, EnvConfig, EvalConfig, SimulatorConfig
from rl.seeds import TWIN_EVAL
from world_model.view import View


@dataclass(frozen=True)
class EpisodeOptions:
    """The keys that `wamtune eval` and `wamtune rank` share."""

    MOVED = (("id", "env.id"), ("tasks", "env.tasks"), ("n_workers", "env.n_workers"))

    env: SimulatorConfig = field(default_factory=SimulatorConfig)
    seed: int = EvalConfig().seed  # of the first episode
    policy: Chosen = ""  # the policy, as in wamtune train; empty: that of the checkpoints that are named first
    n_denoising_steps: int | None = None  # of the policy; null: as many as its own sampler takes
    n_action_steps: int = 0  # executed actions of a chunk; 0: all, or the number in the configuration of the policy
    max_steps: int = EnvConfig().max_steps  # after which an episode is truncated
    obs_noise: float = 0.0  # standard deviation of white noise on every feature and step, in units of the state
    n_envs: int = EnvConfig().n_envs  # parallel environments of the simulator
    out: str = ""  # .json: the figures and each episode; .html: a page with the tables; empty: the tables alone

    def check(self) -> None:
        """Refuse counts out of range, and an `out` of another file type."""
        at_least(self, 1, "max_steps", "n_envs", "n_denoising_steps")
        at_least(self, 0, "seed", "n_action_steps", "obs_noise")
        if self.out and not self.out.endswith((".json", ".html")):
            raise UserError(f"out={self.out!r}: expected the name of a .json file or of an .html page")


@dataclass(frozen=True)
class EvalOptions(EpisodeOptions):
    """The keys of `wamtune eval`."""

    n_episodes: int = EvalConfig().n_episodes  # of each task
    instruction: str | None = None  # of the one task in env.tasks, for policies that read sentences; null: the usual
    text_encoder: str = ""  # FILE.py:function, the frozen encoder of the checkpoint, which new sentences need
    place: Literal["sim", "dream", "both"] = "sim"  # where episodes run
    # for place=dream, both: what dreams, a checkpoint or FILE.py:Class as in dream.world_model; empty: the checkpoint
    world_model: ChosenWorldModel = ""
    n_dreams: int = 4  # with place=both: fresh dreams beside the twin of each episode, to estimate success; 0: none

    def check(self) -> None:
        """Refuse counts out of range."""
        super().check()
        at_least(self, 1, "n_episodes")
        at_least(self, 0, "n_dreams")
        _enough_starts(self.n_episodes * self.n_dreams, "n_dreams")


@dataclass(frozen=True)
class RankOptions(EpisodeOptions):
    """The keys of `wamtune rank`."""

    n_starts: int = EvalConfig().n_episodes  # first states of each task, in which every checkpoint dreams an episode
    n_real: int = 0  # real episodes of each task and checkpoint, from the first of these states; 0: the dream alone
    world_model: str = ""  # checkpoint in whose dream all are ranked; empty: the first that is named and has one
    n_resamples: int = 2000  # of the bootstrap over starts

    def check(self) -> None:
        """Refuse counts out of range."""
        super().check()
        at_least(self, 2, "n_starts")
        at_least(self, 1, "n_resamples")
        at_least(self, 0, "n_real")
        if 2 * self.n_real > self.n_starts:
            raise UserError(
                f"n_real={self.n_real}: each real episode needs its own start and at least one fresh one; expected at "
                f"most half of n_starts={self.n_starts}"
            )


def _enough_starts(n: int, key: str) -> None:
    if n > len(TWIN_EVAL):
        raise UserError(f"{key}: {n:,} dreams from fresh starts, expected at most {len(TWIN_EVAL):,}; lower it")


@dataclass(frozen=True)
class SweepOptions:
    """The keys of `wamtune sweep`; all others are of `wamtune train`, the same in every trial."""

    # key of wamtune train: LOW..HIGH, log:LOW..HIGH or VALUE,VALUE,...
    space: dict[str, Any] = field(default_factory=dict)
    n_trials: int = 20  # trainings in all
    n_workers: int = 1  # processes that train at the same time; 0: only make the folder, for workers elsewhere
    prune: bool = True  # end a trial that is below the median of the others at the same gate
    # what is compared, the highest is best: gate, the success of the champion at its gates; or a key of the log
    metric: str = "gate"
    sampler_seed: int = 0  # of the proposals

    def check(self) -> None:
        """Refuse counts out of range."""
        at_least(self, 1, "n_trials")
        at_least(self, 0, "n_workers", "sampler_seed")


@dataclass(frozen=True)
class DreamOptions:
    """The keys of `wamtune dream`."""

    MOVED = (("task", "env.tasks"),)

    # env.tasks: one; empty: push, or the first that the checkpoint knows
    env: SimulatorConfig = field(default_factory=SimulatorConfig)
    instruction: str | None = None  # of that task, for models that read sentences; null: the usual
    text_encoder: str = ""  # FILE.py:function, the frozen encoder of the checkpoint, which new sentences need
    seed: int = EvalConfig().seed  # names the episode
    n_chunks: int = 8  # length of the episode at most
    source: Literal["expert", "policy", "joint"] = "expert"  # who acted; joint: imagine future and actions together
    n_denoising_steps: int = DreamConfig().n_denoising_steps  # of the dream
    out: str = ""  # .png; for a model with images also .gif or .mp4; empty: dream.png or dream.gif

    def check(self) -> None:
        """Refuse counts out of range, and an `out` of another file type."""
        at_least(self, 1, "n_chunks", "n_denoising_steps")
        at_least(self, 0, "seed")
        _one_task(self.env)
        if self.out and not self.out.endswith((".png", ".gif", ".mp4")):
            raise UserError(
                f"out={self.out!r}: expected the name of a .png file, or of a .gif or .mp4 for a model that sees"
            )


@dataclass(frozen=True)
class PlayOptions:
    """The keys of `wamtune play`."""

    MOVED = (("task", "env.tasks"), ("tasks", "env.tasks"))

    # env.tasks: to choose from, the first one begins; empty: all that the checkpoint knows
    env: SimulatorConfig = field(default_factory=SimulatorConfig)
    place: Literal["both", "dream"] = "both"  # dream: alone, from recorded states, without a simulator
    seed: int = EvalConfig().seed  # of the first start; each new start adds 1
    speed: float = 0.4  # share of the largest action that a held key sends
    frames_per_s: float = 12.0  # chunks in a second at most; real time in Meta-World is 10
    episodes: str = ""  # folder of recorded episodes, for starts and the usual error; empty: those in the checkpoint
    text_encoder: str = ""  # FILE.py:function, the frozen encoder of the checkpoint, which new sentences need
    port: int = 0  # of the page on this computer; 0: a free one
    open: bool = False  # open the page in the default browser
    threads: int = 1  # of torch on the CPU

    def check(self) -> None:
        """Refuse numbers out of range."""
        at_least(self, 1, "threads")
        at_least(self, 0, "seed")
        require(self, ("speed",), lambda value: 0 < value <= 1, "more than 0 and at most 1")
        require(self, ("frames_per_s",), lambda value: 0 < value <= 60, "more than 0 and at most 60")
        require(self, ("port",), lambda value: 0 <= value < 2**16, "0 to 65535")


@dataclass(frozen=True)
class ExportOptions:
    """The keys of `wamtune deploy ... export`."""

    out: str = ""  # folder to write; empty: exported/ in the run folder, for a checkpoint in the current folder
    n_denoising_steps: int = 0  # of the policy; 0: as in the run that trained it, else 2
    n_action_steps: int = 0  # executed of a chunk; 0: as in the run that trained it, else all of it
    episodes: str = ""  # recorded episodes for the parity check; empty: those in the checkpoint, else random states

    def check(self) -> None:
        """Refuse counts out of range."""
        at_least(self, 0, "n_denoising_steps", "n_action_steps")


@dataclass(frozen=True)
class CalibrateOptions:
    """The keys of `wamtune deploy CHECKPOINT calibrate EPISODES`."""

    task: str = ""  # empty: the only one that was recorded
    out: str = ""  # file to write; empty: read_out.json in the folder of episodes


@dataclass(frozen=True)
class ServeOptions:
    """The keys of `wamtune serve`."""

    host: str = "127.0.0.1"  # address to listen on: this computer alone; 0.0.0.0: all of its networks
    port: int = 8000  # 0: a free one
    certificate: str = ""  # PEM file, for an encrypted line (TLS); empty: not encrypted
    key: str = ""  # PEM file of its private key
    max_clients: int = 8  # connected at the same time
    max_rows: int = 16  # most observations in a request, and most dreams of a client
    rename: dict[str, str] = field(default_factory=dict)  # for openpi: key of an observation -> feature of the policy
    seed: int = 0  # of the noise for clients of openpi; others send theirs
    text_encoder: str = ""  # FILE.py:function, the frozen encoder of the checkpoint, which new prompts of openpi need
    threads: int = 1  # of torch on the CPU
    policy: Chosen = ""  # FILE.py:Class if the policy is a class of your own; empty: the checkpoint that is named first
    n_denoising_steps: int | None = None  # of the policy; null: as many as its own sampler takes
    device: str = "cpu"  # of a policy that you bring, and of the dream, such as cuda
    task: str = ""  # only for a policy that you bring, as the next four keys
    instruction: str = ""  # of that task, for a policy that reads language; empty: the words of its name
    hz: float = 0.0  # rate: actions per second
    low: tuple[float, ...] = ()  # smallest value of each entry of an action
    high: tuple[float, ...] = ()  # largest value
    dream: bool = False  # offer the dream as well
    world_model: ChosenWorldModel = ""  # what dreams, a checkpoint or FILE.py:Class; empty: the checkpoint
    episodes: str = ""  # folder of recorded episodes in whose first states dreams begin; empty: those in the checkpoint
    horizon: int = DreamConfig().horizon  # chunks of a dream
    max_steps: int = EnvConfig().max_steps  # steps of a dream
    images: tuple[str, ...] = ()  # cameras whose images a dream shows beside its latents

    def check(self) -> None:
        """Refuse counts out of range, and a key without a certificate."""
        at_least(self, 1, "max_clients", "max_rows", "threads", "horizon", "max_steps")
        at_least(self, 0, "seed", "hz")
        require(self, ("port",), lambda value: 0 <= value < 2**16, "0 to 65535")
        at_least(self, 1, "n_denoising_steps")
        if self.key and not self.certificate:
            raise UserError(f"key={self.key}: there is no certificate to it; name one with certificate=FILE")


@dataclass(frozen=True)
class FitOptions:
    """The keys of `wamtune fit`."""

    MOVED = (("task", "env.tasks"),)

    # env.tasks: one; empty: the only one that was recorded
    env: SimulatorConfig = field(default_factory=SimulatorConfig)
    n_episodes: int = 16  # recorded episodes to use; half of them are kept apart to measure the fit
    n_steps: int = 60  # steps replayed of each
    spread: float = 0.1  # training draws each factor within this share around its fitted value
    seed: int = 0  # of the search for the parameters
    checkpoint: str = ""  # the one that ran; for episodes with images: its cameras are fitted, and the preset trains it
    out: str = "fitted.yaml"  # preset of `wamtune train` to write, with the fitted events and the episodes

    def check(self) -> None:
        """Refuse counts and shares out of range."""
        at_least(self, 2, "n_episodes")
        at_least(self, 1, "n_steps")
        at_least(self, 0, "seed")
        _one_task(self.env)
        require(self, ("spread",), lambda value: 0 <= value < 1, "at least 0 and less than 1")


@dataclass(frozen=True)
class HubOptions:
    """The keys of `wamtune cp CHECKPOINT hf://USER/NAME`."""

    private: bool = True  # visibility of a new repository; to upload to a public one, private=false
    license: str = "unknown"  # of the weights, as the Hub writes it, such as apache-2.0

    def check(self) -> None:
        """Refuse a license that is not an identifier."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise UserError(f"license={self.license!r}: expected an identifier of the Hub, such as apache-2.0")


@dataclass(frozen=True)
class CollectOptions:
    """The keys of `wamtune collect`."""

    # env.tasks: at least one, unless env.id is the task
    env: SimulatorConfig = field(default_factory=SimulatorConfig)
    n_episodes: int = 25  # of each task
    source: Literal["expert", "noisy", "random"] = "expert"  # noisy: the expert with noise on its actions
    seed: int | None = None  # of the first episode; null: the first one of the source
    max_steps: int | None = None  # of an episode at most; null: as many as the simulator says, most of them 150
    device: str = "auto"  # of the simulator: cpu, cuda:0, ...

    def check(self) -> None:
        """Refuse counts out of range, and neither tasks nor an id."""
        at_least(self, 1, "n_episodes", "max_steps")
        at_least(self, 0, "seed")
        if not (self.env.tasks or self.env.id):
            raise UserError("env.tasks=[]: expected at least one task; add env.tasks=push or others to the command")


LARGEST_IMAGE = 4096
"""Largest accepted number of pixels along a side of an exported image."""


@dataclass(frozen=True)
class DatasetOptions:
    """The keys of `wamtune cp EPISODES DATASET`."""

    MOVED = (("instructions", "env.instructions"),)

    # env.tasks: to export; empty: all that were recorded. env.instructions, or instructions: task -> sentence
    env: SimulatorConfig = field(default_factory=SimulatorConfig)
    cameras: dict[str, View] = field(default_factory=dict)  # {front: {}}: run the episodes again, with images of each
    image_size: tuple[int, ...] = (96,)  # pixels of the images of `cameras`: one number for both sides, or height,width
    # of the recorded state: whole; split: what the robot measures itself as `state`, the rest as `environment_state`;
    # robot: without that rest, for a policy that sees the objects in images
    state: Literal["whole", "split", "robot"] = "whole"

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.image_size[0], self.image_size[-1]

    def check(self) -> None:
        """Refuse sizes out of range, names that no feature can have, and options, which episodes do not store."""
        if len(self.image_size) not in (1, 2) or not all(1 <= side <= LARGEST_IMAGE for side in self.image_size):
            shown = ",".join(map(str, self.image_size))
            raise UserError(
                f"image_size={shown}: expected one number of pixels, or height,width, each from 1 to {LARGEST_IMAGE}"
            )
        for name in self.cameras:
            if not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(f"cameras.{name}: expected a name of letters, digits, _ and -")
        if self.env.options:
            raise UserError("env.options: episodes run again as the simulator is without options; leave them out")


def _one_task(env: SimulatorConfig) -> None:
    if len(env.tasks) > 1:
        raise UserError(f"env.tasks={','.join(env.tasks)}: expected one task")
