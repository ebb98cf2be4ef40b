"""Compare two image representations of a world model: codes of a small autoencoder, and the pixels of image patches.

    python benchmarks/codec.py [--seeds 0 1 2] [--out runs/codec]

The two models differ only in the codec. Both have 16 tokens per image and predict clean samples. The autoencoder is
trained first, on the same images; the other model gets more training steps, so that both take the same time. Prints
the PSNR of dreamed images where something moves, on held-out episodes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from seeing import CODEC, CONFIG, PRETRAIN, Films, image_data, train
from torch import Tensor

from rl.config import SimulatorConfig
from rl.envs.sim import make_spec
from rl.stages.images import by_task, encoded_episodes, model_spec
from world_model.wam.images import PATCH, ImageCodec
from world_model.wam.metrics import image_metrics
from world_model.wam.model import WorldActionModel
from world_model.wam.training import fit_statistics

TASKS = ("door-open", "drawer-open", "plate-slide", "push")
COUNTS = {"expert": 25, "noisy": 25, "random": 10}  # episodes per task
HELDOUT = {"expert": 5, "noisy": 10}
PIXELS = replace(CONFIG, patch_dim=3 * PATCH**2)
N_STEPS_OF_PIXELS = 2000


class Patches(ImageCodec):
    """Codes that are the pixels of 16 x 16 patches, minus the constant part of the images."""

    def __init__(self) -> None:
        super().__init__(1, PIXELS.image_size, PIXELS.patch_dim, widths=(1, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (n, 1, size, size, 3) uint8 as codes (n, n_tokens * dim)."""
        x = (images.float() / 255 - 0.5).movedim(-1, -3) - self.always
        return x.unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH).permute(0, 1, 3, 4, 2, 5, 6).flatten(1)

    def draw(self, codes: Tensor) -> Tensor:
        """Decode codes to images, as floats around 0."""
        side = self.size // PATCH
        x = codes.view(len(codes), 1, side, side, 3, PATCH, PATCH).permute(0, 1, 4, 2, 5, 3, 6)
        return x.reshape(len(codes), 1, 3, self.size, self.size) + self.always


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/codec"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    films = image_data(args.out / "episodes", TASKS, COUNTS, 0)
    heldout = image_data(args.out / "heldout", TASKS, HELDOUT, 500_000)
    print("| codec | seed | minutes | one chunk | four chunks | repeat | repeat, four | codec alone | shuffle |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for seed in args.seeds:
        for name in ("autoencoder", "patches"):
            begun = time.monotonic()
            model = pretrained(name, films, seed)
            minutes = (time.monotonic() - begun) / 60
            found = image_metrics(model, encoded_episodes(model, SimulatorConfig(), *heldout), heldout[1])["mean"]
            columns = ("psnr", "psnr_far", "repeat", "repeat_far", "codec", "shuffle_ratio")
            cells = " | ".join(f"{found[column]:.2f}" for column in columns)
            print(f"| {name} | {seed} | {minutes:.1f} | {cells} |", flush=True)


def pretrained(name: str, films: Films, seed: int) -> WorldActionModel:
    """Pre-train a world model with one of the two codecs."""
    config = CONFIG if name == "autoencoder" else PIXELS
    torch.manual_seed(seed)
    model = WorldActionModel(config, model_spec(make_spec("metaworld", TASKS), config))
    images, stage = by_task(*films), replace(PRETRAIN, seed=seed)
    if name == "patches":
        model.pictures, stage = Patches(), replace(stage, n_steps=N_STEPS_OF_PIXELS)
    assert model.image_codec is not None
    model.image_codec.fit(images)
    if name == "autoencoder":
        train(model, "codec", images, replace(CODEC, seed=seed))
    windows = model.windows(encoded_episodes(model, SimulatorConfig(), *films))
    fit_statistics(model, windows, n=10_000)
    train(model, "pretrain", windows, stage)
    return model


if __name__ == "__main__":
    main()
