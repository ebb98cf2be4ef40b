"""The interface of a reward term: a function `term(t: Transition, **params) -> Tensor (num_envs,)`."""

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
"""Fields of a `Transition` that are set in every place (sim, dream, real). Others, and slices, depend on the place."""


class PictureCodec(Protocol):
    """What reward terms may use of the image codec whose codes are in the slice `image`."""

    n_views: int

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (N, code_dim) to images (N, n_views, size, size, 3) uint8."""

    def encode_file(self, path: str) -> Tensor:
        """Encode the image in a file once for each camera. Shape: (n_views, code_dim / n_views)."""


@dataclass
class Transition:
    """One step of N environments. `t["object_pos"]` is the named slice of `next_state`. Shape: (N, d)."""

    state: Tensor  # (N, state_dim), before the action
    next_state: Tensor  # (N, state_dim), after the action
    action: Tensor  # (N, action_dim), within the action bounds
    action_history: Tensor  # (N, 3, action_dim), oldest first, the current action last
    success: Tensor  # (N,) bool, the task is solved in next_state
    terminated: Tensor  # (N,) bool, the episode ends here; false for a time limit
    elapsed: Tensor  # (N,) int64, steps since the episode began, 1 after its first action
    task: Tensor  # (N,) int64, index of the task
    slices: dict[str, slice]  # named parts of the state
    progress: Tensor | None = None  # (N,), the model's estimate for state; set if a term requires "progress"
    next_progress: Tensor | None = None  # (N,), the model's estimate for next_state
    task_reward: Tensor | None = None  # (N,), the simulator's own reward; None in a dream
    own_rewards: dict[str, Tensor] = field(default_factory=dict)  # term -> (N,), terms that the simulator computes
    codec: PictureCodec | None = None  # codec of the slice `image`, for a model with images

    def __getitem__(self, name: str) -> Tensor:
        """Return the named slice of `next_state`. Shape: (N, d)."""
        if name not in self.slices:
            raise UserError(f"the state has no slice {name!r}; {closest_or_known(name, self.slices)}")
        return self.next_state[:, self.slices[name]]

    def pictures(self) -> Tensor:
        """Decode the images of `next_state`. Shape: (N, n_views, size, size, 3) uint8.

        A term that calls this must declare `requires=("image",)`.
        """
        assert self.codec is not None  # `requires` was checked when the config was composed
        return self.codec.decode(self["image"])


@overload
def reward(term: AnyTerm, /) -> AnyTerm: ...
@overload
def reward(*, requires: Collection[str] = ()) -> Callable[[AnyTerm], AnyTerm]: ...
def reward(term: AnyTerm | None = None, /, *, requires: Collection[str] = ()) -> Any:
    """Declare which fields of a `Transition`, or slices of the state, a term reads; the term itself is unchanged.

    A term that needs what a place cannot provide is then refused before the run starts, not in the middle of it.

    A term is a function, or a class that is built with its params and called with the transition. A class may keep
    state between steps if it has a method `reset(mask)`, mask (num_envs,) bool, which is called when episodes begin.
    """

    def mark(marked: AnyTerm) -> AnyTerm:
        marked.requires = requires  # type: ignore[attr-defined]
        return marked

    return mark if term is None else mark(term)
