"""Other ways to make a training step, to compare beeray's with."""
