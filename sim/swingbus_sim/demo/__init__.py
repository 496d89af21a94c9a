"""The demo: one whole site in processes on this machine, driven through a scenario, judged from outside, reported.

It uses only what an operator has: the programs' command lines, configuration files and RPCs. It imports no program.
"""
