"""The CUDA driver through ``cuda.bindings``: device, module, launch, memory. Knows nothing of models or programs."""
