"""The command line: one file a command, a terminal that renders what the library reports, and nothing else."""
