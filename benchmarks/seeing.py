"""Code shared by benchmarks of models with images: a model, episodes with images, a training stage with progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from rl.config import SimulatorConfig
from rl.envs.sim import make_spec
from rl.runs.progress import Progress
from rl.stages.collect import SOURCES, collect_scripted
from rl.stages.images import with_images
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.windows import Windows
from world_model.view import View
from world_model.wam.config import ModelConfig
from world_model.wam.images import ImageData
from world_model.wam.model import WorldActionModel
from world_model.wam.training import StageConfig, train_stage

CONFIG = ModelConfig(world_width=256, bfloat16=True, views={"front": View()})
CODEC = StageConfig(n_steps=2000, batch_size=64, learning_rate=2e-3)
PRETRAIN = StageConfig(n_steps=1500, batch_size=128, learning_rate=1e-3)

Films = tuple[list[Episode], list[Tensor]]
"""Episodes, and the images of each, (T + 1, 1, size, size, 3) uint8."""


def image_data(folder: Path, tasks: Sequence[str], counts: dict[str, int], first: int) -> Films:
    """Return `counts` episodes per task and source, from seed `first` on; they are cached in `folder`."""
    store = EpisodeStore(folder)
    if not store.shards:
        for i, (source, n) in enumerate(counts.items()):
            store.append(collect_scripted(source, tasks, n, first + 10_000 * i), make_spec("metaworld", tasks))
    return with_images(SimulatorConfig(), store, CONFIG, tasks, SOURCES)


def train(model: WorldActionModel, stage: str, data: Windows | ImageData, config: StageConfig) -> None:
    """Train one stage and show its progress."""
    with Progress(stage) as progress:

        def log(step: int, values: dict[str, float]) -> None:
            progress.update(step, config.n_steps, **values)

        train_stage(stage, model, data, config, log)
