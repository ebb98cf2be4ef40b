"""`wamtune serve`: answer with a policy, and its dream, over a websocket."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rewards.errors import UserError, file_of
from rl.build import find_policy, is_policy
from rl.compose import compose
from rl.deploy.brought import try_out
from rl.deploy.contract import CONTRACT, ONNX
from rl.deploy.pilots import OnnxPilot, Pilot
from rl.deploy.remote_pilot import TOKEN, is_remote
from rl.deploy.served import Dream, Served
from rl.deploy.server import Endpoint, serving
from rl.envs.simulator import usable_device
from rl.policies.api import Denoiser
from rl.policies.pilot import DenoiserPilot
from rl.policies.wam import ModelPilot, load_actor
from rl.verbs.acting import load_brought, load_dream, load_recorded, refuse_own_class
from rl.verbs.options import ServeOptions
from world_model.checkpoint import MODEL, find_checkpoint
from world_model.dream_env import StartStates
from world_model.files import sha256
from world_model.spec import IMAGES, STATE, Spec
from world_model.wam.text import load_encoder


def run(words: list[str]) -> None:
    """Load the policy, and answer clients until Ctrl-C."""
    name = words[0]
    options = compose(None, words[1:], ServeOptions)
    torch.set_num_threads(options.threads)
    # It would print a line for each answer that finds its line cut, and a stranger could fill a log with them.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    served, endpoint = load_served(name, options), _endpoint(options)
    with serving(served, endpoint) as url:
        print(f"{name}: sha256 {served.sha256[:12] or 'unknown'}, messages of at most {served.max_bytes / 1e6:.1f} MB")
        if endpoint.token:
            shown = "the one in this environment" if os.environ.get(TOKEN) else endpoint.token
            print(f"token: {shown}; wamtune deploy reads it from the environment variable {TOKEN}")
        if not endpoint.is_loopback and not endpoint.certificate:
            print("not encrypted: whoever reads the line has the token; see certificate and key in docs/serve.md")
        print(f"listening at {url}, until Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):
            _wait()


def _wait() -> None:
    threading.Event().wait()


def load_served(name: str, options: ServeOptions) -> Served:
    """Load the policy, and the dream if it is asked for, and let the policy compute a chunk.

    Raises:
        UserError: it cannot be loaded or cannot act; something is not known, and the message names the key to set; or
            there are no recorded states in which a dream could begin.
    """
    if is_remote(name):
        raise UserError(f"serve {name}: it is a server already; name a checkpoint or a run folder")
    pilot = _pilot(name, options)
    dream = _dream(name, options) if options.dream else None
    return Served(pilot, name, _sha256(name), options.max_rows, options.seed, options.rename, dream)


def _pilot(name: str, options: ServeOptions) -> Pilot:
    if options.policy or is_policy(name):
        denoiser = load_brought(name, options.policy, usable_device("device", options.device), n_action_steps=0)
        pilot: Pilot = DenoiserPilot(denoiser, _spec(denoiser, name, options), options.n_denoising_steps)
        try_out(pilot, name, file_of(denoiser))
        return pilot
    refuse_own_class(name)
    for key in ("task", "instruction", "hz", "low", "high"):
        if getattr(options, key):
            raise UserError(f"{key}: {name} knows this itself; leave it out")
    if (Path(name) / CONTRACT).is_file():
        return OnnxPilot(name)
    encode = load_encoder(options.text_encoder, key="text_encoder") if options.text_encoder else None
    pilot = ModelPilot(load_actor(name), options.n_denoising_steps, encode)
    try_out(pilot, name, "")
    return pilot


def _spec(denoiser: Denoiser, name: str, options: ServeOptions) -> Spec:
    """Return what a policy that somebody brings does not say of itself: bounds, task and rate."""
    for key, example in (("task", "push"), ("hz", "10"), ("low", "-1.0,-1.0"), ("high", "1.0,1.0")):
        if not getattr(options, key):
            raise UserError(f"{key}=: {name} does not say it; set it to that of its training, such as {key}={example}")
    if STATE not in denoiser.reads:
        raise UserError(f"{name} reads no {STATE!r}, which the limits of a robot need; add it to `reads` of the policy")
    return Spec.from_dict(
        Spec(
            features=dict(denoiser.reads),
            action_low=options.low,
            action_high=options.high,
            tasks=(options.task,),
            control_hz=options.hz,
            instructions={options.task: options.instruction} if options.instruction else {},
        ).to_dict()
    )


def _dream(name: str, options: ServeOptions) -> Dream:
    if options.world_model:
        model = load_dream(options.world_model, name, options.seed, "cpu", say=print)
    else:
        model = load_actor(name)
    images = tuple(image if image.startswith(IMAGES) else IMAGES + image for image in options.images)
    for image in images:
        if image not in model.spec.images:
            known = ", ".join(of.removeprefix(IMAGES) for of in model.spec.images) or "none"
            raise UserError(f"images={image.removeprefix(IMAGES)}: expected cameras of the world model: {known}")
    episodes = load_recorded(model, options.world_model or name, options.episodes)
    starts = StartStates.from_episodes(episodes, model.spec.tasks, model.n_context_frames)
    if isinstance(model, nn.Module):
        model.to(usable_device("device", options.device))
    return Dream(model, starts, options.horizon, options.max_steps, images)


def _sha256(name: str) -> str:
    """Return the sha256 of the weights; empty for new weights of a class of your own."""
    if (Path(name) / CONTRACT).is_file():
        return sha256(Path(name) / ONNX)
    for find in (find_policy, find_checkpoint):
        with suppress(UserError):
            if (path := find(name) / MODEL).is_file():
                return sha256(path)
    return ""


def _endpoint(options: ServeOptions) -> Endpoint:
    """Return where to listen; beyond this computer a token is needed."""
    endpoint = Endpoint(
        host=options.host,
        port=options.port,
        token=os.environ.get(TOKEN, ""),
        certificate=options.certificate,
        key=options.key,
        max_clients=options.max_clients,
    )
    return endpoint if endpoint.token or endpoint.is_loopback else replace(endpoint, token=secrets.token_urlsafe(24))
