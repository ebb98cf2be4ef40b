"""What a config says of a simulator reaches the simulator, the episodes and the checkpoints."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rl.build import build_simulator
from rl.compose import compose
from rl.config import SimulatorConfig
from rl.runs.folder import RunFolder
from rl.stages.config import PretrainConfig
from rl.stages.run import pretrain
from world_model.data.episodes import EpisodeStore
from world_model.wam.store import load_model

SENTENCE = "Pull the drawer open."


def test_instructions_are_in_the_spec_of_the_simulator() -> None:
    for instructions, expected in (({}, "Pull the drawer open by its handle."), ({"drawer-open": SENTENCE}, SENTENCE)):
        config = SimulatorConfig(tasks=("drawer-open",), instructions=instructions)
        env = build_simulator(config, config.tasks, 1, model=None, known_tasks=(), n_context_frames=1, max_steps=2)
        with contextlib.closing(env):
            assert env.spec.instruction("drawer-open") == expected


def test_instructions_are_stored_with_episodes_and_checkpoint(tmp_path: Path) -> None:
    words = f"""name=x tasks=[drawer-open] threads=1 episodes={tmp_path}/e n_expert=1 n_noisy=0 n_random=0 n_heldout=3
        trust_steps=0 stage.n_steps=1 stage.batch_size=2 stage.warmup_steps=1""".split()
    words += ["model={width: 32, world_width: 48, action_width: 32, n_layers: 1, n_heads: 2}"]
    words += [f"env.instructions={{drawer-open: {SENTENCE}}}"]
    config = compose(None, words, PretrainConfig)
    with RunFolder.create(tmp_path / "runs", config.name, 0) as run:
        pretrain(config, run)
    assert EpisodeStore(tmp_path / "e").spec.instructions == {"drawer-open": SENTENCE}
    assert load_model(run.path / "checkpoints" / "last").spec.instruction("drawer-open") == SENTENCE
