"""`wamtune play`: drive the dream of a checkpoint in a browser, beside the simulator."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch

from rewards.errors import UserError, closest_or_known
from rl.build import find_simulator, make_sim
from rl.compose import compose
from rl.config import DreamConfig, EnvConfig, TrainConfig
from rl.envs.names import check_has_simulator, env_of_tasks, shown_name
from rl.envs.simulator import Simulator
from rl.instructions import tell, tell_of
from rl.play.loop import play
from rl.play.page import Page
from rl.play.panes import check_shown, shown_image
from rl.play.server import check_installed, serving
from rl.play.session import Session
from rl.play.twin import MOST_CHUNKS, SETTLING, Twin, recorded_starts, usual_error
from rl.policies.api import Policy
from rl.policies.wam import flow_policy
from rl.verbs.acting import load_recorded
from rl.verbs.options import PlayOptions
from world_model.env import BatchedEnv
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model_and_config

DEFAULT = "metaworld-pixels-tuned"
"""The checkpoint if none is named."""


def run(words: list[str]) -> None:
    """Serve the page until Ctrl-C."""
    named = bool(words) and "=" not in words[0]
    name = words[0] if named else DEFAULT
    options = compose(None, words[named:], PlayOptions)
    torch.set_num_threads(options.threads)
    check_installed()
    session = load_session(name, options, say=partial(print, flush=True))
    try:
        with serving(Page(name), session.tasks, session.about(), options.port) as hub:
            print(f"{name}: open this address in a browser of this computer; Ctrl-C ends it\n{hub.address}", flush=True)
            if options.open:
                webbrowser.open(hub.address)
            with suppress(KeyboardInterrupt):
                play(session, hub, options.frames_per_s)
    finally:
        session.twin.close()


def load_session(name: str, options: PlayOptions, say: Callable[[str], None] = lambda line: None) -> Session:
    """Load the checkpoint and begin its first task; `say` gets a line for each sentence or task that is new to it.

    Raises:
        UserError: it cannot be loaded or shown, it does not know a task, or there are no recorded episodes of it.
    """
    model, config = load_model_and_config(name)
    model.n_denoising_steps = DreamConfig().n_denoising_steps
    check_shown(model, name, has_sim=options.place == "both")
    tasks = options.env.tasks or model.spec.tasks
    for line in tell_of(model, options.env, tasks, text_encoder=options.text_encoder):
        say(line)
    for task in tasks:
        if task not in model.spec.tasks:
            known = closest_or_known(task, model.spec.tasks)
            raise UserError(f"env.tasks={task}: {name} does not know this task; {known}")
    if options.place == "both":
        check_has_simulator(env_of_tasks(options.env, tasks), model.spec.tasks, name)
    episodes = load_recorded(model, name, options.episodes)
    if options.place == "dream":
        recorded = {episode.task for episode in episodes}
        tasks = tuple(task for task in tasks if task in recorded)
        if not tasks:
            raise UserError(
                f"env.tasks={','.join(options.env.tasks)}: no recorded episode of it in which a dream could begin; "
                f"recorded are {', '.join(sorted(recorded))}; name others with episodes=FOLDER"
            )
    twin = Twin(
        model,
        recorded_starts(model, episodes),
        _simulator_of(model, options) if options.place == "both" else None,
    )
    # A checkpoint of the pretrain stage only predicts.
    acts = config.get("stage") != "pretrain"
    return Session(
        twin=twin,
        tasks=tasks,
        seed=options.seed,
        usual_error=usual_error(model, episodes),
        speed=options.speed,
        make_policy=_policy_of(model) if acts else None,
        tell=_teller_of(model, options.text_encoder) if model.reads_sentences else None,
    )


def _simulator_of(model: WorldActionModel, options: PlayOptions) -> Callable[[str], Simulator]:
    """Return a function from a task to the simulator, whose episodes never end by themselves."""
    max_steps = (MOST_CHUNKS + SETTLING + 1) * model.chunk_size

    def make(task: str) -> Simulator:
        env = EnvConfig(**vars(replace(env_of_tasks(options.env, (task,)), tasks=(task,))), max_steps=max_steps)
        env = replace(env, terminate_on_success=False)
        if find_simulator(env).place == "dream":
            raise UserError(f"{shown_name(env)}: it dreams itself; set place=dream")
        config = TrainConfig(name="play", env=env, seed=options.seed)
        return make_sim(config, model, (task,), 1, rewards=False, shown=shown_image(model))

    return make


def _teller_of(model: WorldActionModel, text_encoder: str) -> Callable[[str, str], str]:
    """Return a function that gives the model a sentence for a task that it knows, and returns what it is to it."""

    def say(task: str, sentence: str) -> str:
        lines = tell(model, (task,), {}, {task: sentence}, text_encoder=text_encoder)
        return lines[0] if lines else f"task {task}: {sentence!r}, as before"

    return say


def _policy_of(model: WorldActionModel) -> Callable[[BatchedEnv], Policy]:
    return lambda env: flow_policy(model, env)
