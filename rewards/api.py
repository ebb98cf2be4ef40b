"""What a reward term is: a function `term(t: Transition, **params) -> Tensor (num_envs,)`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, overload

from torch import Tensor

from rewards.errors import UserError, closest_or_known

AnyTerm = TypeVar("AnyTerm", bound=Callable[..., Any])

ALWAYS_PROVIDED = frozenset(
    {"state", "next_state", "action", "action_history", "success", "terminated", "elapsed", "task"}
)
"""Fields of a `Transition` that every place fills in. The others, and the slices, depend on the place."""


class PictureCodec(Protocol):
    """What a term may ask of the codec that made the codes in the slice `image`."""

    n_views: int

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (N, code_dim) -> pictures (N, n_views, size, size, 3) uint8."""

    def encode_file(self, path: str) -> Tensor:
        """Codes (n_views, code_dim / n_views) of the picture in a file, as each of the cameras would see it."""


@dataclass
class Transition:
    """One step of N environments. `t["object_pos"]` is the named slice of `next_state`. Shape: (N, d)."""

    state: Tensor  # (N, state_dim), before the action
    next_state: Tensor  # (N, state_dim), after it
    action: Tensor  # (N, action_dim), within its bounds
    action_history: Tensor  # (N, 3, action_dim), oldest first, the current action last
    success: Tensor  # (N,) bool, the task is solved in next_state
    terminated: Tensor  # (N,) bool, the episode ends here; false for a time limit
    elapsed: Tensor  # (N,) int64, steps since the episode began, 1 after its first action
    task: Tensor  # (N,) int64
    slices: dict[str, slice]  # named parts of the state
    progress: Tensor | None = None  # (N,), the model's estimate in state; filled for `requires=("progress",)`
    next_progress: Tensor | None = None  # (N,), the same in next_state
    task_reward: Tensor | None = None  # (N,), the simulator's own reward; a dream has none
    own_rewards: dict[str, Tensor] = field(default_factory=dict)  # (N,), what the simulator computed for each such term
    codec: PictureCodec | None = None  # of the slice `image`, where the model sees

    def __getitem__(self, name: str) -> Tensor:
        """Return the named slice of `next_state`. Shape: (N, d)."""
        if name not in self.slices:
            raise UserError(f"the state has no slice {name!r}; {closest_or_known(name, self.slices)}")
        return self.next_state[:, self.slices[name]]

    def pictures(self) -> Tensor:
        """Decode the images of `next_state`, on demand: (N, n_views, size, size, 3) uint8.

        A term that calls it has `requires=("image",)`.
        """
        assert self.codec is not None  # promised by `requires`
        return self.codec.decode(self["image"])


@overload
def reward(term: AnyTerm, /) -> AnyTerm: ...
@overload
def reward(*, requires: Collection[str] = ()) -> Callable[[AnyTerm], AnyTerm]: ...
def reward(term: AnyTerm | None = None, /, *, requires: Collection[str] = ()) -> Any:
    """Declare which fields of a `Transition`, or slices of the state, a term reads; the term itself is unchanged.

    What a place cannot provide is then refused when the config is composed, not in the middle of a run. A term is a
    function, or a class that is built with its params and called with the transition; it may keep state between steps
    if it has `reset(mask)`, mask (num_envs,) bool.
    """

    def mark(marked: AnyTerm) -> AnyTerm:
        marked.requires = requires  # type: ignore[attr-defined]
        return marked

    return mark if term is None else mark(term)
