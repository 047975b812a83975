"""What is run: the description of a model, and everything that turns a checkpoint folder into one."""
