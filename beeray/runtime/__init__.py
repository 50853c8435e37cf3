"""Workers, DeepSpeed, checkpoints, scoring, tracking: what turns `core` into a job on a cluster."""
