"""Simulated GPUs at the level of the driver's library: a shared file per host and a library that reads it.

`build` makes the library and the environment in which programs find it, `shelf` is the simulator's side of the file,
`processes` the table of workloads in it, `layout` the words. Nothing is imported here: a workload needs two of the
four.
"""
