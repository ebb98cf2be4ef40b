"""What a step of pre-training takes, memory and time, for a model of any size: asked before it is built.

Weights are counted exactly, without memory for them. Time and activations grow by the same amount with every layer, so
both are measured on models of one and of two layers, and extended to all layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from world_model.data.windows import Batch, Windows
from world_model.spec import Spec
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.training import fit_statistics, train_stage, trained_parameters
from world_model.wam.training_config import StageConfig

BYTES = 4
"""Of a number in float32: each weight has one, its gradient one, and Adam two."""

TIMED_STEPS = 3
"""Steps of which the fastest counts; others may use the same machine."""


@dataclass(frozen=True)
class StepCost:
    """Of one step of pre-training in one process. Memory in bytes, time in seconds."""

    n_weights: int  # all of the model
    n_trained: int  # those that have gradients
    n_layer_weights: int  # those that `shard=true` shares among processes
    activations: int  # kept from the forward for the backward pass, of one part of the batch
    seconds: float

    def memory(self, n_sharing: int = 1) -> dict[str, int]:
        """Return the bytes of each kind, in each of `n_sharing` processes that share the layers."""
        apart = self.n_layer_weights - self.n_layer_weights // n_sharing  # in other processes
        return {
            "weights": BYTES * (self.n_weights - apart),
            "gradients": BYTES * (self.n_trained - apart),
            "Adam": 2 * BYTES * (self.n_trained - apart),
            "activations": self.activations,
        }


class RandomWindows(Windows):
    """Windows of random numbers, which cost what those of episodes cost.

    Args:
        model: gives their shapes.
    """

    def __init__(self, model: WorldActionModel) -> None:
        self.spec, self.config, self.device = model.predicted_spec, model.config, model.device

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw `n` windows."""
        k, action_dim = self.config.chunk_size, len(self.spec.action_low)

        def normal(*shape: int) -> Tensor:
            return torch.randn(n, *shape, generator=generator, device=self.device)

        def frames(n_frames: int) -> dict[str, Tensor]:
            return {name: normal(n_frames, *feature.shape) for name, feature in self.spec.features.items()}

        return Batch(
            context=frames(self.config.n_context_frames),
            task=torch.randint(len(self.spec.tasks), (n,), generator=generator, device=self.device),
            actions=normal(k, action_dim),
            future=frames(k),
            success=(normal(k) > 0).float(),
            progress=normal(k).sigmoid(),
        )


def step_cost(config: ModelConfig, spec: Spec, stage: StageConfig, device: torch.device) -> StepCost:
    """Return what a step of pre-training takes; `stage.batch_size` is that of one process.

    Args:
        config: architecture.
        spec: of the model.
        stage: its batch, parts and `recompute` count.
        device: that computes.
    """
    with torch.device("meta"):  # shapes without memory
        model = WorldActionModel(config, spec)
    trained = trained_parameters("pretrain", model)
    layers = [p for stack in (model.encoder, model.world, model.action) for p in stack.stack.blocks.parameters()]
    activations = _of_all_layers(lambda small: _activations(small, spec, stage, device), config)
    if stage.recompute:  # while the backward pass is in a layer, what that layer has computed again is kept as well
        kept = replace(stage, recompute=False)
        activations += _activations(replace(config, n_layers=2), spec, kept, device)
        activations -= _activations(replace(config, n_layers=1), spec, kept, device)
    return StepCost(
        n_weights=_count(model.parameters()),
        n_trained=_count(trained),
        n_layer_weights=_count(layers),
        activations=int(activations),
        seconds=_of_all_layers(lambda small: _seconds(small, spec, stage, device), config),
    )


def _of_all_layers(measure: Callable[[ModelConfig], float], config: ModelConfig) -> float:
    """Extend what models of one and two layers take to all layers of `config`."""
    one, two = (measure(replace(config, n_layers=n)) for n in (1, 2))
    return one + (config.n_layers - 1) * max(two - one, 0)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _activations(config: ModelConfig, spec: Spec, stage: StageConfig, device: torch.device) -> int:
    """Return the bytes that a step keeps for the backward pass."""
    model, windows = _random(config, spec, device)
    with counted_activations(model) as activations:
        train_stage("pretrain", model, windows, replace(stage, n_steps=1))
    return activations.most


def _seconds(config: ModelConfig, spec: Spec, stage: StageConfig, device: torch.device) -> float:
    """Return the time of a step."""
    model, windows = _random(config, spec, device)
    times: list[float] = []

    def clock(step: int, losses: dict[str, float]) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    # The first step also makes the optimizer's state, so only those after it are timed.
    train_stage("pretrain", model, windows, replace(stage, n_steps=TIMED_STEPS + 1, log_every=1), log=clock)
    return min(after - before for before, after in pairwise(times))


def _random(config: ModelConfig, spec: Spec, device: torch.device) -> tuple[WorldActionModel, RandomWindows]:
    model = WorldActionModel(config, spec).to(device)
    windows = RandomWindows(model)
    fit_statistics(model, windows, n=1000)
    return model, windows


class Activations:
    """The bytes that are kept for a backward pass, now and at most; each piece of memory counts once.

    Args:
        model: its weights do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self.now = self.most = 0
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._n_holding: dict[int, int] = {}  # address -> tensors that are kept there

    def hold(self, value: Tensor) -> Kept:
        """Count a tensor, until what is returned is gone."""
        memory = value.untyped_storage()
        if memory.data_ptr() not in self._weights:
            n = self._n_holding.get(memory.data_ptr(), 0)
            self._n_holding[memory.data_ptr()] = n + 1
            self.now += 0 if n else memory.nbytes()
            self.most = max(self.most, self.now)
        return Kept(value, self)

    def drop(self, value: Tensor) -> None:
        """Count a tensor no longer."""
        memory = value.untyped_storage()
        if memory.data_ptr() not in self._weights:
            self._n_holding[memory.data_ptr()] -= 1
            self.now -= 0 if self._n_holding[memory.data_ptr()] else memory.nbytes()


class Kept:
    """A tensor that is kept for a backward pass. Parts of a graph that are not used go before it."""

    def __init__(self, value: Tensor, counted: Activations) -> None:
        self.value, self._counted = value, counted

    def __del__(self) -> None:
        self._counted.drop(self.value)


@contextmanager
def counted_activations(model: nn.Module) -> Iterator[Activations]:
    """Count what is kept for the backward passes of this context, without the weights of `model`."""
    activations = Activations(model)
    with torch.autograd.graph.saved_tensors_hooks(activations.hold, lambda kept: kept.value):
        yield activations
