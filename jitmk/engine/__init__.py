"""A live model: resident weights, KV cache, prefill, decode steps, sampling, and the `Model` that users hold."""
