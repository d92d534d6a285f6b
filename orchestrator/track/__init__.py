"""Copies a run's metrics from the mirror to where you keep results: wandb, trackio, MLflow. No training waits."""
