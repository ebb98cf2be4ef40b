"""The processes that torchrun starts for one run: sums, averaged gradients and gathered results.

`Distributed` is a single process, and none of its methods does anything. `join` returns a `Group` where torchrun has
started several. Only torchrun's own environment variables are read, so the number of nodes does not matter.

Before each exchange all processes agree that none of them has failed. A process whose own work raised an exception
answers with that exception, and all processes raise it: see `together`. A process that cannot answer any more is found
by `rl.ppo.heartbeat`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from rewards.errors import BadNumbers, UserError
from rl.ppo.heartbeat import Heartbeat
from rl.ppo.sums import Sums, new_sums
from world_model.processes import ALONE, Share
from world_model.seeds import PROCESS_SEED

T = TypeVar("T")

JOINING, WAITING = timedelta(minutes=5), timedelta(minutes=10)
"""Longest wait for all processes to start, and for a process that lives but does not come to the next exchange."""

LOOK = 0.1
"""Seconds between two looks whether process 0 has finished what it does alone."""

FOLDER = "wamtune/folder"
"""Key under which torchrun's store keeps the run folder, for the processes that it starts after a fault."""


class Distributed:
    """A single process: every method does nothing, and returns what it was given."""

    rank = 0
    world_size = 1

    @staticmethod
    def join() -> Distributed:
        """Return the group of the processes that torchrun has started; without torchrun, a single process."""
        several = distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
        return Group() if several else Distributed()

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which alone writes files."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """What a training loop of `world_model` needs of the group."""
        return ALONE

    @property
    def n_threads(self) -> int:
        """Threads of torch that this process may use without slowing down the others on its machine."""
        return torch.get_num_threads()

    def n_workers(self, n_workers: int) -> int:
        """Return how many of the simulator workers of a config this process starts."""
        return n_workers

    def seed(self, seed: int) -> int:
        """Return a seed that is different in each process; `seed` itself in process 0."""
        return seed + PROCESS_SEED * self.rank

    def part(self, key: str, n: int) -> int:
        """Return the equal part that each process has of `n`, the value of the config key `key`.

        Raises:
            UserError: `n` is not a multiple of the number of processes.
        """
        parts, rest = divmod(n, self.world_size)
        if rest:
            tries = [str(k * self.world_size) for k in (parts, parts + 1) if k]
            raise UserError(
                f"{key}={n}: expected a multiple of the {self.world_size} processes, which share it equally; "
                f"try {' or '.join(tries)}"
            )
        return parts

    def average_gradients(
        self, parameters: Sequence[nn.Parameter], values: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Replace the gradients of `parameters` by their mean over all processes; return the mean of other `values`."""
        return dict(values or {})

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return values

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of each value over all processes, which must have the same names."""
        return dict(values)

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any process."""
        return flag

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this process: every `world_size`-th one."""
        return items[self.rank :: self.world_size]

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes; if each has those of `shard`, they are in the order before it."""
        return list(items)

    def gather_to_first(self, value: T) -> list[T]:
        """Return the values of all processes in process 0, [] in the others."""
        return [value]

    def from_first(self, value: T) -> T:
        """Return the value that process 0 has."""
        return value

    def copy_from_first(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite tensors by those of process 0, which have the same names and shapes."""

    def by_first(self, work: Callable[[], T]) -> T:
        """Let process 0 do some work, however long it takes; return its result in all processes."""
        return work()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an exception of this context in all processes, named after the process that it comes from."""
        yield

    def remember(self, folder: str) -> None:
        """Keep the run folder for the processes that torchrun starts after a fault."""

    def remembered(self) -> str:
        """Return the run folder of the processes before a fault; empty if there were none."""
        return ""

    def __enter__(self) -> Distributed:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the group."""


class Group(Distributed):
    """One of several processes. Tensors on the CPU are exchanged with gloo, those on a GPU with NCCL.

    Gradients of processes on one machine are added in memory that they share, see `rl.ppo.sums`.

    It is a context manager. If it is left with an exception, one process of the group writes the error line, and the
    error streams of all others are closed.
    """

    def __init__(self) -> None:
        self.n_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        _see_one_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            store, self.rank, self.world_size = next(distributed.rendezvous("env://", timeout=JOINING))
        except RuntimeError as error:
            raise UserError(f"the processes of torchrun have not found each other: {error}") from error
        # torchrun's store outlives a restart, and holds addresses of processes that have ended. So each start has its
        # own part of it.
        store = distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=distributed.PrefixStore("group", store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=WAITING,
        )
        self._store = store
        self._heartbeat = Heartbeat(store, self.rank, self.world_size)
        self._told: Exception | None = None  # the error that all processes know of
        self._sums: dict[tuple[int, torch.dtype, torch.device], Sums] = {}  # see `average_gradients`
        self._n_alone = 0  # pieces of work that process 0 has done, see `by_first`
        if not self.is_first:
            sys.stdout = open(os.devnull, "w")

    @property
    def share(self) -> Share:
        """What a training loop of `world_model` needs of the group."""
        return Share(self.world_size, self.average_gradients)

    @property
    def n_threads(self) -> int:
        """The cores of this machine, divided by its processes. torchrun sets the default of torch to 1."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.n_local)

    def n_workers(self, n_workers: int) -> int:
        """Return the workers of a config divided by the processes of this machine."""
        return n_workers // self.n_local

    def average_gradients(
        self, parameters: Sequence[nn.Parameter], values: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Average all gradients and `values` in one exchange; a parameter without gradient counts as 0.

        The gradients become parts of the sum, which the next call for as many numbers overwrites. It is float32 at
        least, so gradients in bfloat16 are copied back.
        """
        values = values or {}
        sums = self._sums_of(parameters, len(values))
        lengths = [*(parameter.numel() for parameter in parameters), len(values)]
        *parts, others = sums.own.split(lengths)
        for parameter, part in zip(parameters, parts, strict=True):
            if parameter.grad is None:
                part.zero_()
            else:  # the share of this process, written in one pass
                torch.div(parameter.grad.flatten(), self.world_size, out=part)
        others.copy_(torch.tensor(list(values.values())) / self.world_size)
        with self._exchange():
            *means, others = sums.total().split(lengths)
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean.view_as(parameter).to(parameter.dtype)
        return dict(zip(values, others.tolist(), strict=True))

    def _sums_of(self, parameters: Sequence[nn.Parameter], n_others: int) -> Sums:
        """Return the sums of all gradients, kept from step to step: to get new memory takes longer than an exchange."""
        n, device = sum(p.numel() for p in parameters) + n_others, parameters[0].device
        dtype = reduce(torch.promote_types, (parameter.dtype for parameter in parameters), torch.float32)
        key = n, dtype, device
        if key not in self._sums:
            self._sums[key] = new_sums(self, n, dtype, device)
        return self._sums[key]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes; it is the same to the bit in each of them."""
        with self._exchange():
            total = values.detach().clone()
            distributed.all_reduce(total)
        return total

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of each value over all processes."""
        total = self.sum(torch.tensor(list(values.values()), dtype=torch.float64, device="cpu"))
        return dict(zip(values, (total / self.world_size).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any process."""
        return bool(self.sum(torch.tensor(int(flag), device="cpu")))

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes: the first of each, then the second of each, and so on."""
        lists: list[Any] = [None] * self.world_size
        with self._exchange():
            distributed.all_gather_object(lists, list(items))
        return [of[i] for i in range(max(map(len, lists))) for of in lists if i < len(of)]

    def gather_to_first(self, value: T) -> list[T]:
        """Return the values of all processes in process 0, [] in the others."""
        values: list[Any] = [None] * self.world_size if self.is_first else []
        with self._exchange():
            distributed.gather_object(value, values if self.is_first else None)
        return values

    def from_first(self, value: T) -> T:
        """Return the value that process 0 has."""
        box = [value]
        with self._exchange():
            distributed.broadcast_object_list(box)
        return box[0]

    def copy_from_first(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite tensors by those of process 0, one after the other."""
        with self._exchange(), torch.no_grad():
            for tensor in tensors.values():
                first = tensor.contiguous()  # itself, unless it is a view with gaps
                distributed.broadcast(first, 0)
                tensor.copy_(first)

    def by_first(self, work: Callable[[], T]) -> T:
        """Let process 0 do some work. The others look for its end in the store: an exchange would time out."""
        self._n_alone += 1
        done, result = f"alone/{self._n_alone}", None
        if self.is_first:
            try:
                result = work()
            finally:
                self._store.set(done, "")
        else:
            with self._answered():
                while not self._store.check([done]):
                    time.sleep(LOOK)
        return self.from_first(cast(T, result))  # raises here what `work` raised there

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an exception of this context in all processes, named after the process that it comes from."""
        try:
            yield
        except Exception as error:
            # All processes know it already, or have raised another error from it.
            if self._told is not None and self._told in (error, error.__cause__):
                raise
            self._agree(error)

    def remember(self, folder: str) -> None:
        """Keep the run folder for the processes that torchrun starts after a fault."""
        _lasting(self._store).set(FOLDER, folder)

    def remembered(self) -> str:
        """Return the run folder of the processes before a fault; empty if there were none."""
        store = _lasting(self._store)
        return str(store.get(FOLDER).decode()) if store.check([FOLDER]) else ""

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the group; after a fault one process alone keeps its error stream.

        Raises:
            UserError: torchrun ends this process because another one is missing.
        """
        if kind is None:
            self._heartbeat.end()
            distributed.destroy_process_group()
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others when the first has ended
        missing = ""
        if not self._heartbeat.is_first_to_end():
            sys.stderr = open(os.devnull, "w")
        elif kind is KeyboardInterrupt:
            missing = self._heartbeat.missing()
        self._heartbeat.end()
        if missing:
            raise UserError(missing)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Do an exchange after all processes have agreed that they can.

        Raises:
            Exception: that of the process that failed.
            UserError: a process does not answer.
        """
        self._agree()
        with self._answered():
            yield

    def _agree(self, error: Exception | None = None) -> None:
        """Tell the others whether this process has failed; raise the exception of the one that has."""
        self._heartbeat.n_exchanges += 1
        with self._answered():
            failed = torch.tensor(0 if error is None else self.rank + 1, device="cpu")
            distributed.all_reduce(failed, distributed.ReduceOp.MAX)
            if not failed:
                return
            first = int(failed) - 1
            box: list[Any] = [None if error is None else (isinstance(error, BadNumbers), _line(error), _tensors(error))]
            distributed.broadcast_object_list(box, first)
        is_bad_number, line, tensors = box[0]
        line = f"process {first}: {line}"
        self._told = BadNumbers(line, **tensors) if is_bad_number else UserError(line)
        raise self._told from error

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Turn what torch raises if a process does not answer into a line that names the process."""
        try:
            yield
        except RuntimeError as error:
            missing = self._heartbeat.missing() or self._heartbeat.late()
            self._told = UserError(missing or f"the exchange between the processes failed: {error}")
            raise self._told from error


def _see_one_gpu(local_rank: int) -> None:
    """Let this process see one GPU only, its own, which is then `cuda:0` here; this must precede any use of CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(i) for i in range(local_rank + 1)]
    os.environ["CUDA_VISIBLE_DEVICES"] = names[local_rank] if local_rank < len(names) else ""


def _lasting(store: distributed.Store) -> distributed.Store:
    """Return torchrun's store without the prefix of this start, so that its keys outlive a restart."""
    while isinstance(store, distributed.PrefixStore):
        store = store.underlying_store
    return store


def _line(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"unexpected {type(error).__name__}: {error}"


def _tensors(error: Exception) -> dict[str, Tensor]:
    found: dict[str, Any] = error.tensors if isinstance(error, BadNumbers) else {}
    return {name: value.detach().cpu() for name, value in found.items() if isinstance(value, Tensor)}
