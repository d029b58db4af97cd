"""An iteration of RL: sample, score, learn."""
