"""Who does what: cost model, policies, the verifier, and the encoding to instruction buffers."""
