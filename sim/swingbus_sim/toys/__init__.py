"""Toy tenants as container images: a miner and an inference server that really work on the simulated GPUs a pod was given."""
