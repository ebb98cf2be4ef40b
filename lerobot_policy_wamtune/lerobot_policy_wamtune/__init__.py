"""wamtune in LeRobot's programs: checkpoints as policies, and environments.

LeRobot imports this package when one of its programs starts, because of the name of the distribution. The import
registers `--policy.type=wamtune` and `--env.type=wamtune`.
"""

from lerobot_policy_wamtune.configuration_wamtune import WamtuneConfig
from lerobot_policy_wamtune.env import WamtuneEnv
from lerobot_policy_wamtune.modeling_wamtune import WamtunePolicy
from lerobot_policy_wamtune.processor_wamtune import make_wamtune_pre_post_processors

__all__ = ["WamtuneConfig", "WamtuneEnv", "WamtunePolicy", "make_wamtune_pre_post_processors"]
