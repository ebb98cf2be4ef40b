"""Measure how fast a device dreams, imitates and refits, also as a share of the speed of its matrix products.

    python benchmarks/device.py                                     # the CPU, one thread
    python benchmarks/device.py --device cuda:0 --n 256 1024 4096   # a GPU
    python benchmarks/device.py --checkpoint metaworld-tuned        # a model with state observations

For each number of branches, it measures a dream in which the policy acts (encode, decide, dream): environment steps and
images per second, with an image decoded at the end of each chunk. It measures the same with `torch.compile`, which
captures CUDA graphs on a GPU, and the difference of the frames from the plain version, relative to the size of the
motion. Then it measures gradients per second of imitation and of a refit, forward and backward, which is most of the
cost of an optimizer step. A share is floating-point operations per second, as counted by torch, divided by those of the
largest square matrix product, in bfloat16 if the device has it, else float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.data.windows import Batch, Windows
from world_model.wam import modes
from world_model.wam.features import joined
from world_model.wam.losses import policy_loss, rollout_losses
from world_model.wam.model import WorldActionModel
from world_model.wam.precision import has_bfloat16
from world_model.wam.store import load_model
from world_model.wam.training import trained_parameters

Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", default="metaworld-pixels-tuned")
    parser.add_argument("--n", nargs="+", type=int, default=[64, 256], help="branches of the dream")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--plain", action="store_true", help="compile nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(args.checkpoint).to(args.device)
    windows = model.windows(EpisodeStore(find_checkpoint(args.checkpoint)).load())
    peak = fastest_product(model.device, args.seconds)
    print(f"{args.checkpoint} on {args.device}: products at {peak / 1e12:.2f} TFLOP/s\n")
    print("| branches | dream | steps/s | images/s | share | difference |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for n in args.n:
        for row in dream_rows(model, draw(model, windows, n), peak, args.seconds, args.plain):
            print(row, flush=True)
    batch = draw(model, windows, 512)
    print("\n| gradients of 512 chunks | a second | share |\n| --- | ---: | ---: |")
    steps = {"imitation": policy_step(model, batch), "refit of the dream": refit_step(model, batch)}
    for name, step in steps.items():
        rate = measured(step, model.device, args.seconds)
        print(f"| {name} | {rate:.1f} | {100 * rate * operations(step) / peak:.1f} % |", flush=True)


@torch.no_grad()
def dream_rows(model: WorldActionModel, batch: Batch, peak: float, seconds: float, plain: bool) -> Iterator[str]:
    """Measure a dream that starts at the rows of a batch, plain and compiled; return rows of the table."""
    n, codec, start = len(batch.task), model.image_codec, joined(batch.context)
    noise, nothing = (make(model, n, generator_of(model)) for make in (modes.action_noise, modes.video_noise))

    def chunk(context: Tensor, task: Tensor) -> Tensor:
        encoded = model.encode(context, task)
        return modes.dream(model, encoded, modes.policy(model, encoded, noise, 2), nothing, 1)

    def drawn(dream: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        seen = dream(start, batch.task)
        return seen if codec is None else codec.decode(seen[:, -1, -codec.code_dim :])

    frames, work = chunk(start, batch.task), operations(partial(drawn, chunk))
    moved = (frames - start[:, -1:]).norm()
    ways = {"plain": chunk}
    if not plain:
        ways["compiled"] = torch.compile(chunk, mode="reduce-overhead", dynamic=False)
    for way, dream in ways.items():
        difference = float((dream(start, batch.task) - frames).norm() / moved)
        rate = measured(partial(drawn, dream), model.device, seconds)
        images = 0 if codec is None else rate * n * codec.n_views
        told = f"{rate * n * model.config.chunk_size:,.0f} | {images:,.0f} | {100 * rate * work / peak:.1f} %"
        yield f"| {n} | {way} | {told} | {difference:.1e} |"


def policy_step(model: WorldActionModel, batch: Batch) -> Step:
    """Return one forward and backward pass through the action decoder."""
    with torch.no_grad():
        context = model.observe(batch.obs)

    def step() -> object:
        model.action.requires_grad_(True)
        loss = policy_loss(model, context, batch.actions, generator_of(model))
        return torch.autograd.grad(loss, list(model.action_parameters()), allow_unused=True)

    return step


def refit_step(model: WorldActionModel, batch: Batch) -> Step:
    """Return one forward and backward pass through the world decoder; the encoder is frozen."""
    parameters = list(model.dynamics_parameters())

    def step() -> object:
        trained_parameters("dynamics", model)
        losses = rollout_losses(model, batch, generator_of(model))
        return torch.autograd.grad(losses["video"], parameters, allow_unused=True)

    return step


def fastest_product(device: torch.device, seconds: float) -> float:
    """Return floating-point operations per second of the largest square matrix product that fits."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if has_bfloat16(device) else torch.float32)
    return 2 * size**3 * measured(lambda: a @ a, device, seconds)


def operations(step: Step) -> int:
    """Return the floating-point operations of a step, including its backward pass."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measured(step: Step, device: torch.device, seconds: float) -> float:
    """Return steps per second, after two steps to warm up."""
    for _ in range(2):
        step()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begun, n = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        step()
        n += 1
    wait()
    return n / (time.perf_counter() - begun)


def draw(model: WorldActionModel, windows: Windows, n: int) -> Batch:
    """Draw `n` windows."""
    return windows.sample(n, generator_of(model))


def generator_of(model: WorldActionModel) -> torch.Generator:
    """Return a generator that always gives the same random numbers."""
    return torch.Generator(model.device).manual_seed(0)


if __name__ == "__main__":
    main()
