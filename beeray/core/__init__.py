"""The method itself, in torch, numpy, scipy and sentence-transformers only.

Nothing here knows Ray, DeepSpeed, MLflow or the configuration: `core` runs in a plain process, under
torchrun, in a notebook, or inside a Ray Train worker, and computes the same.
"""
