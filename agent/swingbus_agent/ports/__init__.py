"""What the agent's loops need of the outside world, one Protocol per need, one module per kind of thing."""
