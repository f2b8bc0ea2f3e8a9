"""What fits where: memory, sharding, micro batch and time of a training step.

Pure arithmetic over numbers: nothing here imports torch or reads a GPU.
"""
