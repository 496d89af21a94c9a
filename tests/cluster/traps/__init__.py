"""Each row of the trap table on a real control plane with our controller at work."""
