"""The two stages before RL, end to end: collect episodes, train, measure, write a checkpoint with its card.

A run may be interrupted at any time and continued from its folder. Episodes are saved batch by batch; training resumes
from the last saved state and ends with the same weights; measurements are repeated.

If torchrun has started several processes, each computes its share of every batch. Process 0 alone collects episodes,
renders images, measures and writes; the others read its files, so they need the same folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.errors import UserError
from rl.build import device_of
from rl.instructions import new_model, tell_of
from rl.ppo.distributed import Distributed
from rl.report.card import finite, model_card, noise_metrics, success_metrics, world_metrics
from rl.runs.folder import RunFolder
from rl.runs.progress import Progress
from rl.stages.collect import SOURCES
from rl.stages.config import PretrainConfig, TuneConfig
from rl.stages.episodes import (
    checked_early,
    collect,
    demonstrations,
    evaluate,
    evaluate_noisy,
    roll_out,
    simulates,
)
from rl.stages.images import (
    WithImages,
    by_task,
    encode_disturbed,
    encoded_episodes,
    model_spec,
    of_each_frame,
    recorded_images,
    with_images,
)
from rl.stages.recorded import describe, heldout_store, load_split, recorded_tasks
from rl.stages.trust import FOLDS, calibrate_trust
from rl.stages.videos import Video, read_videos, watched
from world_model.checkpoint import load_training_state, pack_training_state
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.shards import pack_episodes
from world_model.data.windows import Windows
from world_model.files import existing_folder
from world_model.replays import HORIZON
from world_model.spec import LATENTS
from world_model.wam.images import ImageData
from world_model.wam.metrics import image_metrics, imitation_metrics
from world_model.wam.model import WorldActionModel
from world_model.wam.sharding import gathered, shard, unshard
from world_model.wam.store import half_precision, load_model, load_model_and_config, save_model
from world_model.wam.training import StageConfig, fit_statistics, train_stage

ALONE = Distributed()
"""A single process."""

DEMONSTRATIONS = "episodes-000000.safetensors"
"""File of a checkpoint folder with its demonstrations; `EpisodeStore` can open the folder."""

CODEC_PHASES = "codec", "pictures"
"""Name of the first phase of a model with cameras in a saved state, and its name in older versions."""

DEMO_CAMERAS = 8
"""Disturbed cameras per demonstration. Demonstrations are few, and the policy must not overfit to one camera."""


@dataclass
class Saved:
    """Contents of a run folder that an earlier call left."""

    model: WorldActionModel
    config: dict[str, Any]
    state: dict[str, Any]  # of training; empty: the run is finished


@dataclass
class StageRun:
    """One run of a stage: its model, which passes through the phases, and what the phases share."""

    run: RunFolder
    stage: str
    parent: str
    model: WorldActionModel
    unseen: Windows | None = None  # held-out windows, for measuring
    simulator: bool = True  # without one, success cannot be measured
    step: int = 0  # optimizer steps of the phases before this one
    distributed: Distributed = ALONE
    shares_layers: bool = False  # among the processes
    told: bool = False  # how to go on after an interruption

    def train(
        self, phase: str, windows: Windows | ImageData, config: StageConfig, resume: dict[str, Any] | None = None
    ) -> None:
        """Run one phase of training; measure and save at intervals. `resume` is a saved state to continue from."""
        distributed = self.distributed
        if distributed.is_first and not self.told:  # not earlier: a refused run leaves no folder
            print(f"to go on after an interruption: wamtune {self.stage} {self.run.path}", flush=True)
            self.told = True
        config = replace(config, seed=distributed.seed(config.seed))
        # The weights are equal but for rounding, which differs between machines.
        distributed.copy_from_first(self.model.state_dict())
        shares_layers = self.shares_layers and distributed.world_size > 1
        if shares_layers:
            shard(self.model, distributed.world_size)

        def log(step: int, values: dict[str, float]) -> None:
            values = distributed.mean(values)
            self.run.log(self.step + step, {f"{phase}/{name}": value for name, value in values.items()})
            progress.update(step, config.n_steps, **values)

        def save(step: int, state: dict[str, Any]) -> None:
            _, *others = distributed.gather_to_first(state["generator"]) or [None]
            state |= {"other_generators": others} if others else {}
            model = self.model
            if shares_layers:
                weights, state = gathered((model.state_dict(), state), distributed.is_first)
                if distributed.is_first:
                    model = whole_model(model, weights)
            distributed.by_first(lambda: write(model, step, state))

        def write(model: WorldActionModel, step: int, state: dict[str, Any]) -> None:
            model.eval()
            if self.unseen is not None:
                self.run.log(self.step + step, _flat(world_metrics(model, self.unseen)))
            model.train()
            files = pack_training_state({"phase": phase, "mark": self.run.mark(), **state})
            self.save({"step": self.step + step}, extra=files, model=model)

        with Progress(phase) as progress:
            if resume is not None:
                new = torch.Generator(self.model.device).manual_seed(config.seed + resume["step"])
                resume = own_state(resume, new, distributed)
            train_stage(phase, self.model, windows, config, log, save, resume, distributed.share)
        if shares_layers:
            unshard(self.model)
        self.step += config.n_steps

    def finish(
        self,
        metrics: dict[str, Any],
        episodes: Sequence[Episode],
        demos: Sequence[Episode],
        half: bool,
        n_stored: int | None = None,
    ) -> dict[str, Any]:
        """Write the finished checkpoint, with its demonstrations and its card, and return its config.

        `n_stored` as in `TuneConfig`.
        """
        spec = self.model.spec
        about: dict[str, Any] = {
            "step": self.step,
            "command": (self.run.path / "config.yaml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# "),
            "episodes": dict(Counter(e.source for e in episodes)),
            "demonstrations": dict(Counter(e.task for e in demos)),
            **({} if n_stored is None else {"n_stored": n_stored}),
            "metrics": finite(metrics),
            **({} if self.simulator else {"simulator": False}),
        }
        self.run.log(self.step, _flat(about["metrics"]))
        card = model_card(self.run.path.parent.name, self.stage, self.parent, spec.tasks, about)
        # Demonstrations are stored as the model encodes them; its image codec is frozen.
        kept = list(demos) if n_stored is None else stored(demos, n_stored, self.model)
        extra = {DEMONSTRATIONS: pack_episodes(kept, self.model.predicted_spec)} if kept else {}
        self.save(about, card, extra, half)
        return about

    def save(
        self,
        about: dict[str, Any],
        card: str = "",
        extra: dict[str, bytes] | None = None,
        half: bool = False,
        model: WorldActionModel | None = None,
    ) -> None:
        """Replace `checkpoints/last`; `model` has the whole weights while processes share the layers."""
        last = self.run.checkpoints / "last"
        save_model(last, model or self.model, self.stage, self.parent, about, card, extra, half)


def stored(demos: Sequence[Episode], n: int, model: WorldActionModel) -> list[Episode]:
    """Return the first `n` demonstrations of each task, with one image a chunk in a model with cameras."""
    kept: list[Episode] = []
    for task in dict.fromkeys(demo.task for demo in demos):
        kept += [demo for demo in demos if demo.task == task][:n]
    return [demo.slowed(LATENTS, model.chunk_size) for demo in kept] if model.cameras else kept


def whole_model(shared: WorldActionModel, weights: dict[str, Tensor]) -> WorldActionModel:
    """Return a copy of a model whose layers are shared, with the whole `weights`."""
    model = WorldActionModel.from_config(shared.to_config()).to(shared.device)
    model.load_state_dict(weights)
    return model


def own_state(state: dict[str, Any], new: torch.Generator, distributed: Distributed) -> dict[str, Any]:
    """Return a saved state with the random numbers of this process.

    With another number of processes than before, all but process 0 begin with those of `new`.
    """
    generators: list[Tensor] = [state["generator"], *state.get("other_generators", [])]
    if distributed.is_first or len(generators) == distributed.world_size:
        return state | {"generator": generators[distributed.rank]}
    return state | {"generator": new.get_state()}


def load_saved(folder: Path) -> Saved | None:
    """Return the last checkpoint of a run folder, None if the run has not saved one."""
    last = folder / "checkpoints" / "last"
    if not existing_folder(last).is_dir():
        return None
    model, config = load_model_and_config(last)
    return Saved(model, config, {} if "metrics" in config else load_training_state(last))


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the training state in a run folder: None if nothing was saved yet, {} if the run is finished."""
    saved = load_saved(folder)
    return None if saved is None else saved.state


def pretrain(config: PretrainConfig, run: RunFolder, distributed: Distributed = ALONE) -> dict[str, Any]:
    """Collect, train and measure; return the facts in the checkpoint's config: `metrics`, `episodes`, `step`, ..."""
    saved = load_saved(run.path)
    if saved is not None and not saved.state:
        return saved.config
    config = checked_early(config)
    torch.set_num_threads(config.threads or distributed.n_threads)
    store = EpisodeStore(config.episode_folder)
    # Collect what is missing. A dataset is needed only once: after the first checkpoint it has been imported.
    if saved is None or simulates(config):
        distributed.by_first(lambda: collect(config, store))
    state = saved.state if saved else None
    if saved is None:
        torch.manual_seed(config.seed)
        spec = store.spec
        spec = replace(
            spec,
            tasks=config.env.tasks or recorded_tasks(store),
            instructions=spec.instructions | config.env.instructions,
            wordings=spec.wordings | config.env.further_wordings,
        )
        # A simulator tells what a robot cannot measure; a recorded state is what a robot has measured.
        architecture = config.model.of_size(config.size)
        model = new_model(architecture, model_spec(spec, config.model) if simulates(config) else spec)
    else:
        model = saved.model
    model.to(device_of(config))
    work = StageRun(
        run, "pretrain", "", model, simulator=simulates(config), distributed=distributed, shares_layers=config.shard
    )
    videos: list[Video] = []
    if config.videos:
        images_per_s = model.spec.control_hz / config.model.chunk_size
        videos = read_videos(config.videos, config.env.tasks, config.model.image_size, images_per_s)
    # With images: render them or take the recorded ones, and train the codec first.
    image_data = _with_images(config, model, store, distributed)
    if image_data is not None:
        if state is None or state["phase"] in CODEC_PHASES:
            _train_codec(config, work, image_data[0], videos, state)
            state = None
        else:
            work.step = config.codec.n_steps  # the resumed run has finished this phase
    # Train the world model, then measure it on held-out episodes.
    episodes, heldout = _read(config, model, store, image_data)
    print(describe(store.folder, episodes, heldout), flush=True)
    if videos:
        episodes += watched(model, videos)
    disturbed = _disturbed(config, model, image_data, n_cameras=1)
    windows, unseen = model.windows(episodes + disturbed), model.windows(heldout)
    work.unseen = unseen
    if state is None:
        fit_statistics(model, windows)
    work.train("pretrain", windows, _seeded(config.stage, config.seed), resume=state)
    if config.half:
        half_precision(model)

    def finish() -> dict[str, Any]:
        metrics = world_metrics(model, unseen) | _image_metrics(config, model, image_data)
        return work.finish(metrics | _trust(model, heldout, config), episodes, [], config.half)

    return distributed.by_first(finish)


def tune(config: TuneConfig, run: RunFolder, distributed: Distributed = ALONE) -> dict[str, Any]:
    """Imitate, roll out, refit and evaluate; return the facts in the checkpoint's config, as `pretrain` does."""
    saved = load_saved(run.path)
    if saved is not None and not saved.state:
        return saved.config
    torch.set_num_threads(config.threads or distributed.n_threads)
    model = (saved.model if saved else load_model(config.checkpoint)).to(device_of(config))
    tell_of(model, config.env, config.env.tasks, text_encoder=config.text_encoder)
    tasks = _tasks(config, model)
    store, own = EpisodeStore(config.episodes), EpisodeStore(run.path / "episodes")
    image_data = demo_images = _with_images(config, model, store, distributed)
    shown, shown_unseen = episodes, unseen = _read(config, model, store, image_data)
    if config.demonstrations.episodes:
        demo_store = EpisodeStore(config.demonstrations.episodes)
        demo_images = _with_images(config, model, demo_store, distributed)
        shown, shown_unseen = _read(config, model, demo_store, demo_images)
    demos = demonstrations(config, shown, tasks)
    unseen_demos = [e for e in shown_unseen if e.task in tasks and config.demonstrations.include(e)]
    work = StageRun(
        run,
        "tune",
        config.checkpoint,
        model,
        model.windows(unseen),
        simulates(config),
        distributed=distributed,
        shares_layers=config.shard,
    )
    state = saved.state if saved else None
    # Imitate the demonstrations.
    if state is None or state["phase"] == "tune":
        stage = _seeded(config.stage, config.seed)
        seen = demos + _disturbed(config, model, demo_images, DEMO_CAMERAS, demos)
        work.train("tune", model.windows(seen), stage, state)
        state = None
        if config.half:  # round now, so that the rollouts are of the policy that will be stored
            half_precision(model)
    else:
        work.step = config.stage.n_steps  # the resumed run has finished this phase
    # Roll the policy out, and refit the world decoder on the new episodes as well.
    distributed.by_first(lambda: roll_out(config, model, tasks, own))
    episodes += own.load()
    unseen += heldout_store(own).load()
    work.unseen = windows = model.windows(unseen)
    if config.refit.n_steps:
        seen = episodes + _disturbed(config, model, image_data, n_cameras=1)
        work.train("refit", model.windows(seen), _seeded(config.refit, config.seed), resume=state)
        model.mark_seen({episode.task for episode in seen})
    if config.half:
        half_precision(model)  # for the weights that the refit changed; the others are rounded already

    def finish() -> dict[str, Any]:
        results, correlations = evaluate(config, model, tasks)
        for result in results:
            run.eval_row({"step": work.step, **result.to_row()})
        metrics = world_metrics(model, windows) | success_metrics(results) | _image_metrics(config, model, image_data)
        metrics |= noise_metrics(evaluate_noisy(config, model, tasks)) | {"error_and_success": correlations}
        metrics |= _imitation(config, model, unseen_demos) | _trust(model, unseen, config)
        return work.finish(metrics, episodes, demos, config.half, config.n_stored)

    return distributed.by_first(finish)


def _with_images(
    config: PretrainConfig | TuneConfig, model: WorldActionModel, store: EpisodeStore, distributed: Distributed = ALONE
) -> tuple[WithImages, WithImages] | None:
    """Return the training and held-out episodes with their images; None for a model without images.

    Images that were recorded are used, others are rendered and stored, by process 0 alone.

    Raises:
        UserError: there are no episodes, or the model has images that were not recorded as it reads them, and there is
            no simulator to render them.
    """
    if not store.shards:
        raise UserError(f"episodes={store.folder}: there are none; `wamtune pretrain PRESET` collects or imports them")
    if not model.cameras:
        return None
    if not simulates(config) or set(model.spec.images) <= store.spec.features.keys():
        where = f"episodes={store.folder}"
        store.check_fits(model.spec, where)
        split = load_split(store, model.spec.tasks, model.config.chunk_size, model.spec.features)
        learned, heldout = (recorded_images(model, part, where) for part in split)
        return learned, heldout
    # Only episodes of scripts in the simulator can be run again.

    def rendered() -> list[WithImages]:
        parts = store, heldout_store(store)
        return [with_images(config.env, part, model.config, model.spec.tasks, SOURCES) for part in parts]

    found: list[WithImages] = []
    distributed.by_first(lambda: found.extend(rendered()))
    learned, heldout = found or rendered()  # the other processes read what process 0 has stored
    return learned, heldout


def _read(
    config: PretrainConfig | TuneConfig,
    model: WorldActionModel,
    store: EpisodeStore,
    image_data: tuple[WithImages, WithImages] | None,
) -> tuple[list[Episode], list[Episode]]:
    """Load the training and held-out episodes of the model's tasks, with the state that the model uses.

    `image_data` is what `_with_images` returned for this store.

    Raises:
        UserError: the episodes were recorded with another robot.
    """
    if image_data is None:
        store.check_fits(model.spec, f"episodes={store.folder}")
        return load_split(store, model.spec.tasks, model.config.chunk_size, model.spec.features)
    learned, heldout = (encoded_episodes(model, config.env, *part) for part in image_data)
    return learned, heldout


def _train_codec(
    config: PretrainConfig,
    work: StageRun,
    image_data: WithImages,
    videos: Sequence[Video],
    state: dict[str, Any] | None,
) -> None:
    """Train the image codec on the images of the episodes and on videos; `state` is a saved state to continue from."""
    codec = work.model.image_codec
    assert codec is not None
    images = by_task(*image_data, videos)  # all of them in memory, until this function returns
    if state is None:
        codec.fit(images)
    work.train("codec", images, _seeded(config.codec, config.seed), state)


def _imitation(config: TuneConfig, model: WorldActionModel, demos: list[Episode]) -> dict[str, float]:
    """Measure the policy on held-out demonstrations; return {} if none is long enough."""
    if not any(e.length >= model.config.chunk_size for e in demos):
        return {}
    return imitation_metrics(model, model.windows(demos), config.n_denoising_steps)


def _disturbed(
    config: PretrainConfig | TuneConfig,
    model: WorldActionModel,
    image_data: tuple[WithImages, WithImages] | None,
    n_cameras: int,
    only: Sequence[Episode] | None = None,
) -> list[Episode]:
    """Return the training episodes of `_read` with images of `n_cameras` disturbed cameras; [] without images.

    `only` selects episodes; None: all.
    """
    if image_data is None:
        return []
    wanted = None if only is None else {(e.task, e.source, e.seed) for e in only}
    pairs = zip(*image_data[0], strict=True)
    chosen = [(e, its) for e, its in pairs if wanted is None or (e.task, e.source, e.seed) in wanted]
    return encode_disturbed(model, config.env, [e for e, _ in chosen], [its for _, its in chosen], n_cameras)


def _image_metrics(
    config: PretrainConfig | TuneConfig, model: WorldActionModel, image_data: tuple[WithImages, WithImages] | None
) -> dict[str, Any]:
    """Measure dreamed images on the held-out episodes; return {} for a model without images."""
    if image_data is None:
        return {}
    episodes, images = image_data[1]
    real = [of_each_frame(model, *pair) for pair in zip(episodes, images, strict=True)]
    return {"images": image_metrics(model, encoded_episodes(model, config.env, episodes, images), real)}


def _trust(model: WorldActionModel, unseen: list[Episode], config: PretrainConfig | TuneConfig) -> dict[str, Any]:
    with Progress("calibrate trust") as progress:
        rows = calibrate_trust(model, unseen, config.trust_steps, lambda share: progress.update(100 * share, 100))
    if config.trust_steps and not rows:
        n_steps = HORIZON * model.config.chunk_size
        print(
            f"expected errors of dreams are not calibrated: it takes {2 * FOLDS} held-out episodes of {n_steps} steps "
            f"or more, there are {sum(episode.length >= n_steps for episode in unseen)}",
            flush=True,
        )
    if config.half:
        half_precision(model)  # for the weights that the calibration fitted; the others are rounded already
    return {"trust": rows} if rows else {}


def _tasks(config: TuneConfig, model: WorldActionModel) -> tuple[str, ...]:
    tasks = config.env.tasks or model.spec.tasks
    for task in (*tasks, *config.demos):
        if task not in model.spec.tasks:
            raise UserError(f"task {task!r} is not one of the checkpoint's: {', '.join(model.spec.tasks)}")
    return tasks


def _seeded(config: StageConfig, seed: int) -> StageConfig:
    return replace(config, seed=config.seed + seed)


def _flat(metrics: dict[str, Any], prefix: str = "heldout") -> dict[str, float]:
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            values |= _flat(value, f"{prefix}/{name}")
        elif value is not None:
            values[f"{prefix}/{name}"] = value
    return values
