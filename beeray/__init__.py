"""beeray: sentence transformers trained on interactions, on Ray."""

__version__ = "0.1.0"
