"""Run folders: checkpoints, durable state, commit and recovery."""
