"""The demo with two of its GPU hosts as real Kubernetes nodes: what runs there is pods, and so is the controller."""
