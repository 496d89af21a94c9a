"""Miners through pyasic-rs, in a child process that may be killed at any time.

`client` is the agent's side, `child` the process, `frames` what they say to each other. This file stays empty of imports:
the child loads it too, and every module it does not load is memory it does not use.
"""
