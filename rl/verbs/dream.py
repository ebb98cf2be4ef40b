"""`wamtune dream`: replay the actions of one real episode in the dream, and show how far the two differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import torch
from rich.table import Table
from torch import Tensor

from rewards.errors import UserError
from rl.build import make_sim
from rl.compose import compose
from rl.config import EnvConfig, TrainConfig
from rl.envs.names import check_has_simulator, env_of_tasks
from rl.envs.simulator import Simulator
from rl.instructions import tell_of, with_instruction
from rl.policies.wam import flow_policy, load_actor
from rl.report.plots import draw_dream
from rl.report.videos import draw_video, image_errors, write_video
from rl.runs.progress import show
from rl.stages.collect import collect_scripted, record
from rl.stages.images import encoded_episodes, run_again
from rl.verbs.options import DreamOptions
from world_model.data.episodes import Episode
from world_model.dream_env import DreamEnv, StartStates
from world_model.files import write_atomically
from world_model.flow import seeded_noise
from world_model.wam import modes
from world_model.wam.features import frame_vectors, joined
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

PARTS = ("object_pos", "hand_pos")
"""Slices of the state that are compared, if it has both; else the first two whose names end with `_pos`."""

DEFAULT_TASK = "push"
"""The task if the command names none and the checkpoint knows this one."""

TITLE = "the same actions in the simulator and in the dream"
THOUGHT = "what happened, and what the model thought would happen"


def run(words: list[str]) -> None:
    """Record an episode, replay it in the dream, print the errors and write a plot or a video."""
    options = compose(None, words[1:], DreamOptions)
    found = dream_of(words[0], options, say=partial(print, flush=True))
    if isinstance(found, LastImage):
        write_atomically(Path(options.out), iio.imwrite("<bytes>", found.image.numpy(), extension=".png"))
        print(f"image: {options.out}, the last one of the {options.source}; a goal for the reward term goal_image")
        return
    print(_heading(found.options, found.frames))
    show(found.table())
    out = options.out or found.default_out
    found.draw(out)
    print(f"plot: {out}" if found.images is None else f"video, at half speed: {out}")


@dataclass(frozen=True)
class Replayed:
    """A real episode, and what its model dreamed of the same actions from the same first state."""

    model: WorldActionModel
    options: DreamOptions
    episode: Episode
    frames: Tensor  # (n, frame_dim) dreamed; the first one is real
    expected: list[float]  # error of each chunk that the model expected; [] without trust, and in joint mode
    images: tuple[Tensor, Tensor] | None = None  # simulated and dreamed (n_chunks + 1, H, W, 3) uint8, of one camera

    @property
    def parts(self) -> tuple[str, ...]:
        """Slices of the state that are compared, in metres."""
        return _parts(self.model)

    @property
    def default_out(self) -> str:
        """Name of the file for the picture."""
        return "dream.png" if self.images is None else "dream.gif"

    def table(self) -> Table:
        """Return a table of the errors at the end of each chunk, of the dream and of repeating the first frame."""
        if self.images is None:
            return error_table(self.model, self.episode, self.frames)
        table = Table("step", "dream, dB", "repeat, dB")
        for i, errors in enumerate(image_errors(*self.images), 1):
            table.add_row(str(i * self.model.config.chunk_size), *(f"{error:.1f}" for error in errors))
        return table

    def draw(self, out: str | Path) -> None:
        """Write a plot of trajectories (.png), or of a model with images a video (.gif, .mp4) at half speed.

        Raises:
            UserError: the file is of another type, or an .mp4 needs a package that is missing.
        """
        model, title = self.model, _title(self.options)
        if self.images is None:
            _check_plot(str(out))
            true = self.episode.state[: len(self.frames)]
            curves, dreamed = (_curves(model, self.episode, frames) for frames in (true, self.frames))
            draw_dream(curves, dreamed, model.config.chunk_size, title, out)
            return
        if not str(out).endswith((".gif", ".mp4")):
            raise UserError(f"out={str(out)!r}: expected the name of a .gif or .mp4 file for a video")
        chunk_s = model.config.chunk_size / model.spec.control_hz
        video = draw_video(*self.images, self.expected, title, chunk_s)
        write_video(video, out, frames_per_s=0.5 / chunk_s)


@dataclass(frozen=True)
class LastImage:
    """The last real image of an episode, which is all that a .png of a model with images shows."""

    image: Tensor  # (H, W, 3) uint8


def dream_of(
    name: str | WorldActionModel, options: DreamOptions, say: Callable[[str], None] = lambda line: None
) -> Replayed | LastImage:
    """Record an episode in the simulator, and dream its actions again; with source=joint, imagine them together.

    Args:
        name: of a checkpoint, or the model itself.
        options: which episode, and how long; an `out` of .png asks a model with images for its last image alone.
        say: called with a line for each sentence or task that is new to the model, before the episode is recorded.

    Raises:
        UserError: the model cannot be loaded or cannot act, or its state has no positions to compare.
    """
    named = name if isinstance(name, str) else "this model"
    if not isinstance(name, str):
        model = name
    else:
        model = load_actor(name) if options.source == "policy" else load_model(name)
    model.n_denoising_steps = options.n_denoising_steps
    env = with_instruction(options.env, options.instruction, model.spec, say)
    tasks = env.tasks or (DEFAULT_TASK if DEFAULT_TASK in model.spec.tasks else model.spec.tasks[0],)
    env = replace(env_of_tasks(env, tasks), tasks=tasks)
    check_has_simulator(env, model.spec.tasks, named)
    options = replace(options, env=env)
    for line in tell_of(model, env, tasks, options.instruction, options.text_encoder):
        say(line)
    if model.cameras:
        return _images_again(model, options)
    if not _parts(model):
        raise UserError(f"dream: the state of {named} has no slice whose name ends with _pos; take another checkpoint")
    _check_plot(options.out or "dream.png")
    episode, imagined = record_episode(model, options)
    frames, expected = replay(model, episode) if imagined is None else (imagined, [])
    return Replayed(model, options, episode, frames, expected)


def record_episode(model: WorldActionModel, options: DreamOptions) -> tuple[Episode, Tensor | None]:
    """Record one episode of up to `n_chunks` chunks in the simulator.

    With source=joint, return also the imagined frames (n, frame_dim), which follow the first real one; else None.
    """
    max_steps = options.n_chunks * model.config.chunk_size
    env_config = EnvConfig(**vars(options.env), max_steps=max_steps, terminate_on_success=False)
    env = make_sim(TrainConfig(name="dream", env=env_config), model, options.env.tasks, 1, rewards=False)
    try:
        env.set_episode_seeds([options.seed])
        if options.source != "joint":
            return record(env, _actor(model, env, options.source), options.source)[0], None
        imagined: list[Tensor] = []
        (episode,) = record(env, _imagining(model, env, imagined), "policy")
        n_whole = episode.length // model.config.chunk_size
        (encoded,) = model.encode_episodes([episode])
        return episode, torch.cat([frame_vectors(encoded)[:1], *imagined[:n_whole]])
    finally:
        env.close()


@torch.no_grad()
def replay(model: WorldActionModel, episode: Episode) -> tuple[Tensor, list[float]]:
    """Dream the whole chunks of `episode.action` from its first state.

    Returns the frames (n, frame_dim), of which the first is that state, and the expected error of each chunk; [] if
    trust was not calibrated.
    """
    size = model.config.chunk_size
    n_chunks = episode.length // size
    if n_chunks == 0:
        raise UserError(f"dream: the episode has {episode.length} steps, a chunk has {size}; try another seed")
    starts = StartStates.from_episodes([episode], model.spec.tasks, model.config.n_context_frames)
    env = DreamEnv(
        model,
        1,
        starts,
        n_chunks,
        max_steps=n_chunks * size,
        terminate_on_success=False,  # the real episode went on, too
        seed=episode.seed,
    )
    env.reset()
    chunks = episode.action[: n_chunks * size].view(n_chunks, 1, size, -1)
    frames, expected = [joined(env.context)[0, -1:]], []
    for actions in chunks:
        frames.append(joined(env.step_chunk(actions).frames)[0])
        if model.estimates_error:
            expected.append(float(torch.as_tensor(env.expected_error).flatten()[0]))
    return torch.cat(frames), expected


def error_table(model: WorldActionModel, episode: Episode, frames: Tensor) -> Table:
    """Return a table of the errors in cm at the end of each chunk: of the dream, and of repeating the first frame."""
    table = Table("step", *(f"{part} {kind}, cm" for part in _parts(model) for kind in ("dream", "repeat")))
    true, first = episode.state[: len(frames)], episode.state[:1]
    size = model.config.chunk_size
    for step in range(size, len(frames), size):
        cells = []
        for part in (model.spec.slices[name] for name in _parts(model)):
            for guess in (frames[step], first[0]):
                cells.append(f"{100 * float((guess[part] - true[step, part]).norm()):.1f}")
        table.add_row(str(step), *cells)
    return table


def _images_again(model: WorldActionModel, options: DreamOptions) -> Replayed | LastImage:
    """Return simulator and dream of a model with images; the last real image alone if `out` is a .png."""
    codec, size = model.image_codec, model.config.chunk_size
    assert codec is not None
    imagined: Tensor | None = None
    if options.source == "expert":  # the expert needs object positions, which the state of an image model lacks
        (episode,) = collect_scripted("expert", options.env.tasks, 1, options.seed, options.env)
    else:
        episode, imagined = record_episode(model, options)
    episode = episode.cut(0, min(episode.length, options.n_chunks * size))
    real = run_again(options.env, episode, model.config)
    if options.out.endswith(".png"):
        return LastImage(real[-1, 0])
    (seen,) = encoded_episodes(model, options.env, [episode], [real]) if options.source == "expert" else (episode,)
    frames, expected = replay(model, seen) if imagined is None else (imagined, [])
    # One image per chunk, of the first camera: simulated and dreamed.
    dreamed = codec.decode(frames[::size, -codec.code_dim :])[:, 0]
    return Replayed(model, options, episode, frames, expected, (real[::size][: len(dreamed), 0], dreamed))


def _check_plot(out: str) -> None:
    if not out.endswith(".png"):
        raise UserError(f"out={out!r}: the checkpoint has no images, so there is no video; take a .png")


def _actor(model: WorldActionModel, env: Simulator, source: str) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return a function from an observation to actions (1, k, action_dim)."""
    if source == "expert":
        return lambda obs: env.expert_actions().unsqueeze(1)
    policy = flow_policy(model, env)

    @torch.no_grad()
    def act(obs: dict[str, Tensor]) -> Tensor:
        return policy.decide(policy.encode(obs), env.episode_seed, env.elapsed)

    return act


def _imagining(
    model: WorldActionModel, env: Simulator, imagined: list[Tensor], n_steps: int = 8
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return an actor in joint mode, which appends the frames that it expects of its actions to `imagined`."""
    codec, action_codec = model.codec, model.action_codec

    @torch.no_grad()
    def act(obs: dict[str, Tensor]) -> Tensor:
        noise = seeded_noise(env.episode_seed, env.elapsed, (codec.n_future_tokens, codec.code_dim))
        own = seeded_noise(env.episode_seed + 1, env.elapsed, (action_codec.n_tokens, action_codec.code_dim))
        frames, actions = modes.joint(model, model.observe(obs), noise, own, n_steps)
        imagined.append(frames[0])
        return actions

    return act


def _parts(model: WorldActionModel) -> tuple[str, ...]:
    """Return the slices of the state that are compared: positions in metres with up to three coordinates."""
    slices = model.spec.slices
    if set(PARTS) <= slices.keys():
        return PARTS
    return tuple(name for name, part in slices.items() if name.endswith("_pos") and part.stop - part.start <= 3)[:2]


def _heading(options: DreamOptions, frames: Tensor) -> str:
    how = "imagined before they happened" if options.source == "joint" else "dreamed again"
    who = "joint mode" if options.source == "joint" else f"the {options.source}"
    return f"{options.env.tasks[0]}, seed {options.seed}: {len(frames) - 1} steps of {who}, {how}"


def _title(options: DreamOptions) -> str:
    return f"{options.env.tasks[0]}: {THOUGHT if options.source == 'joint' else TITLE}"


def _curves(model: WorldActionModel, episode: Episode, frames: Tensor) -> dict[str, Tensor]:
    """Return the curves of a plot by name: positions (n, d) in cm, and the probability of success (n,)."""
    task = torch.full((len(frames),), model.spec.tasks.index(episode.task))
    p, _ = model.read_frames(frames, task)
    slices = model.spec.slices
    curves = {name: 100 * frames[:, slices[name]] for name in _parts(model)}
    return curves | {"success probability": p.detach()}
