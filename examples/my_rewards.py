"""A reward term of your own: a function of a batched transition. `gentle_grasp.yaml` shows how a config uses it."""

from torch import Tensor

from rewards import Transition, reward


@reward(requires=("gripper", "hand_pos", "object_pos"))
def gentle_grasp(t: Transition, near: float = 0.06) -> Tensor:
    """How fast the gripper closes within `near` (m) of the object; give it a negative weight. Shape: (num_envs,)."""
    closed = (t.state - t.next_state)[:, t.slices["gripper"]].sum(-1).clamp(min=0.0)
    distance = (t["hand_pos"] - t["object_pos"]).square().sum(-1).sqrt()
    return closed * (distance < near)
