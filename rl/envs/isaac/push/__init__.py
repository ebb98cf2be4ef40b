"""Isaac-Push-Puck and Isaac-Push-Puck-Camera: a task of Isaac Lab that needs no network.

`isaaclab train --task Isaac-Push-Puck` finds it through the entry point in pyproject.toml, `wamtune` through
`rl.envs.isaac.launch`. Importing this module needs only gymnasium; Isaac Lab is imported when an environment is made.
"""

import gymnasium

for _id, _cfg in (("Isaac-Push-Puck", "PushPuckCfg"), ("Isaac-Push-Puck-Camera", "PushPuckCameraCfg")):
    gymnasium.register(
        id=_id,
        entry_point="isaaclab.envs:ManagerBasedRLEnv",
        disable_env_checker=True,
        kwargs={
            "env_cfg_entry_point": f"{__name__}.task:{_cfg}",
            "expert_entry_point": f"{__name__}.expert:push_puck",
            "rsl_rl_cfg_entry_point": "isaaclab_tasks.core.cartpole.agents.rsl_rl_ppo_cfg:CartpolePPORunnerCfg",
            "sb3_cfg_entry_point": "isaaclab_tasks.core.cartpole.agents:sb3_ppo_cfg.yaml",
        },
    )
