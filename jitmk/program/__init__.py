"""What a step is: the instruction set, the phases a model lowers to, and how its weights are packed."""
