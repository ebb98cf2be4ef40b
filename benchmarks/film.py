"""Make the film of the README: one episode of hammer before and after `make demo`, in the simulator and in the dream.

    make demo
    python benchmarks/film.py runs/demo docs/film.gif

It runs the first episodes of the evaluation with the policy before and after training, in the simulator and in the
dream of the trained checkpoint, prints how many succeed where, and shows the first episode that training turned from a
failure into a success in both. A dream consists of numbers: positions of hand, hammer and nail, and the opening of the
gripper. So that a person can see it, the bodies of the simulator are put where the dream has them, without physics.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "cgl" if sys.platform == "darwin" else "egl")  # mujoco reads it when it is imported

import matplotlib
import mujoco
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from rewards.errors import UserError
from rl.build import make_sim
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.metaworld.fast_sawyer import FastSawyer, fast_class
from rl.policies.wam import flow_policy
from rl.report.pairs import Pair, run_pairs
from rl.report.videos import gif
from world_model.data.episodes import Episode
from world_model.files import write_atomically
from world_model.runs import find_run
from world_model.spec import STATE
from world_model.wam.store import load_model

Array = np.ndarray

TASK = "hammer"
WIDTH, HEIGHT, BAR = 310, 216, 26
"""Size of a panel, and height of the line of text above it, in pixels."""

EVERY = 4
"""Steps from one frame of the film to the next."""

MS_A_FRAME, HOLD = 90, 16
"""Duration of a frame, and how many frames the end is shown."""

COLORS = 104
"""Colours of the GIF."""

PAPER, INK, GOOD, BAD = "#12161c", "#d7dde4", "#46b06a", "#d9604c"
ARM, FINGERS, HAMMER, NAIL = slice(0, 7), (7, 8), slice(9, 16), 16
"""Where the parts are in `qpos` of Meta-World's hammer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of `wamtune train demo`")
    parser.add_argument("out", type=Path)
    parser.add_argument("--n-episodes", type=int, default=24)
    args = parser.parse_args()
    run = find_run(args.run)
    if run is None:
        raise UserError(f"{args.run}: there is no run; make one with `make demo`")
    config = compose(str(run / "config.yaml"), [], TrainConfig)
    if config.env.tasks != (TASK,):
        raise UserError(f"{run}: its task is {', '.join(config.env.tasks)}; this film knows the bodies of {TASK} alone")
    before, after = pairs_of(config, run, args.n_episodes)
    both = list(zip(before, after, strict=True))
    for name, pairs in (("before", before), ("after", after)):
        places = ", ".join(f"{place} {sum(getattr(p, place) for p in pairs)}" for place in ("sim", "dream"))
        print(f"{name} training, successes in {len(pairs)} episodes: {places}")
    shown = [pair for pair in both if not pair[0].sim and not pair[0].dream and pair[1].sim and pair[1].dream]
    if not shown:
        raise UserError("no episode fails before training and succeeds after it in both places; raise --n-episodes")
    print(f"shown: the episode of seed {shown[0][0].seed}, one of {len(shown)} that changed in both places")
    write_atomically(args.out, gif(film(*shown[0]), MS_A_FRAME, COLORS))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


def pairs_of(config: TrainConfig, run: Path, n: int) -> tuple[list[Pair], list[Pair]]:
    """Return the first `n` episodes of the evaluation in simulator and dream, before training and after it."""
    trained = load_model(run / "checkpoints" / "last")
    found = []
    for acting in (load_model(config.checkpoint), trained):
        sim = make_sim(config, trained, (TASK,), n, rewards=False)
        try:
            found.append(run_pairs(flow_policy(acting, sim), trained, sim, config.eval.seeds[:n])[1])
        finally:
            sim.close()
    return found[0], found[1]


def film(before: Pair, after: Pair) -> list[Image.Image]:
    """Return the frames: two rows (before, after) of two panels (simulator, dream)."""
    panels: list[tuple[str, str, list[Array]]] = []
    for when, pair in (("Before training", before), ("After training", after)):
        for place, success, images in (
            ("simulator", pair.sim, simulated(pair.episode)),
            ("dream", pair.dream, dreamed(pair.seed, pair.dreamed[STATE].cpu().numpy())),
        ):
            panels.append((f"{when}, {place}", "solved" if success else "failed", images))
    n = max(len(images) for _, _, images in panels)
    return [_page(panels, min(i, n - 1), i >= n - 1) for i in range(n + HOLD)]


def simulated(episode: Episode) -> list[Array]:
    """Run a recorded episode again and return its images (HEIGHT, WIDTH, 3) uint8."""
    scene = Scene(episode.seed)
    images = [scene.image()]
    for step, action in enumerate(episode.action.numpy(), 1):
        scene.env.advance(action)
        if step % EVERY == 0 or step == episode.length:
            images.append(scene.image())
    return images


def dreamed(seed: int, frames: Array) -> list[Array]:
    """Return images of the bodies where a dream has them; `frames` (n, 21), see `SLICES` of the Meta-World tasks."""
    scene = Scene(seed)
    shown = [*range(0, len(frames) - 1, EVERY), len(frames) - 1]
    return [scene.image(pose) for pose in frames[shown].astype(np.float64)]


class Scene:
    """The scene of an episode, and a camera with full meshes and shadows."""

    def __init__(self, seed: int) -> None:
        self.env: FastSawyer = fast_class(f"{TASK}-v3")(True)
        self.env.restart(seed)
        model, data = self.env.model, self.env.data
        self.nail_pos, self.nail_axis = data.body("nail_link").xpos.copy(), data.joint("NailSlideJoint").xaxis.copy()
        self.nail_at = float(data.qpos[NAIL])
        model.vis.global_.offwidth, model.vis.global_.offheight = 2 * WIDTH, 2 * HEIGHT
        self._renderer = mujoco.Renderer(model, 2 * HEIGHT, 2 * WIDTH)
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:], self._camera.distance = (0.06, 0.66, 0.1), 1.02
        self._camera.azimuth, self._camera.elevation = 152.0, -24.0

    def image(self, pose: Array | None = None) -> Array:
        """Return an image (HEIGHT, WIDTH, 3) uint8 of the present state, or of a pose (21,) of a dream."""
        if pose is not None:
            self._place(pose)
        self._renderer.update_scene(self.env.data, self._camera)
        large = Image.fromarray(self._renderer.render())
        return np.asarray(large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))

    def _place(self, pose: Array) -> None:
        model, data = self.env.model, self.env.data
        # The arm has seven joints for one position of the hand: let the simulator's own weld pull it there, alone.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_GRAVITY
        data.mocap_pos[0], data.qvel[:] = pose[:3], 0.0
        mujoco.mj_step(model, data, nstep=120)
        data.qpos[HAMMER] = [*pose[4:7], *(pose[7:11] / np.linalg.norm(pose[7:11]))]
        data.qpos[NAIL] = self.nail_at + (pose[11:14] - self.nail_pos) @ self.nail_axis
        data.qvel[:] = 0.0
        self._open_fingers(0.1 * float(np.clip(pose[3], 0.0, 1.0)))
        mujoco.mj_forward(model, data)

    def _open_fingers(self, apart: float) -> None:
        """Set the joints of both fingers so that the claws are `apart` metres apart."""
        data = self.env.data
        for _ in range(2):  # the distance is linear in the joints
            mujoco.mj_forward(self.env.model, data)
            now = float(np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos))
            data.qpos[FINGERS[0]] -= (apart - now) / 2
            data.qpos[FINGERS[1]] += (apart - now) / 2


def _page(panels: Sequence[tuple[str, str, list[Array]]], i: int, ended: bool) -> Image.Image:
    """Return one frame of the film; a panel whose episode is over says how it ended."""
    gap = 6
    page = Image.new("RGB", (2 * WIDTH + 3 * gap, 2 * (HEIGHT + BAR) + gap), PAPER)
    draw = ImageDraw.Draw(page)
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(file), 14)
    for k, (title, outcome, images) in enumerate(panels):
        x, y = gap + (k % 2) * (WIDTH + gap), (k // 2) * (HEIGHT + BAR)
        over = ended or i >= len(images) - 1
        draw.text((x + 2, y + 5), title, INK, font)
        page.paste(Image.fromarray(images[min(i, len(images) - 1)]), (x, y + BAR))
        if over:
            color = GOOD if outcome == "solved" else BAD
            draw.rectangle((x, y + BAR, x + WIDTH - 1, y + BAR + HEIGHT - 1), outline=color, width=4)
            draw.text((x + WIDTH - 2, y + 5), outcome, color, font, anchor="ra")
    return page


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
