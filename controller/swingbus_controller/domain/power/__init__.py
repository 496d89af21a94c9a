"""Watts: the power tree, claims and grants, evidence, and what is cut. `tests/prove` proves it; knows no prices and no flips."""
