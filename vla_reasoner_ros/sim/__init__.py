"""A simulated Franka: scene, tasks, scripted experts, and the controller that judges commands."""
