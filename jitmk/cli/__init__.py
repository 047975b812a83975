"""The command-line programs jitmk and jitmk-cache."""
