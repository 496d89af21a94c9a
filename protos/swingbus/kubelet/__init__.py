"""What the kubelet speaks on its sockets: a contract of Kubernetes, not ours, generated from the few messages that are used.

`deviceplugin` belongs to the simulator, which offers GPUs to a kubelet; `podresources` to the agent, which reads who holds them. Neither
imports the other's. Origin and licence stand at the top of each proto. Invariant: a number here is the number there.
"""
