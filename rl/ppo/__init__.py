"""PPO on chunks of actions: update, rollout buffer and imitation."""
