"""Moves from one operating point to another: the machine, its evidence, and where devices stand meanwhile."""
