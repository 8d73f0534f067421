"""Learning from preferences and rewards: losses, rollouts, rewards, and the trainers of the methods that use them."""
