"""The oracle: every opcode in plain torch, and machines that run programs and schedules on the CPU."""
