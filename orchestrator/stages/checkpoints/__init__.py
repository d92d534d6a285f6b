"""What the stages do with checkpoints: copies here, the store job, where a run resumes from."""
