"""The engine: stacks of models that train together, their optimizers, and the loop."""
