"""Robot limits, kinematics, trajectories and the gates that every command passes."""
