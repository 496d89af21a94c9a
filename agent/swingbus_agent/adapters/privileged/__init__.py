"""What needs root on a node, in a process of its own: `keeper` is that process, `link` the agent's end of the pair of sockets.

The agent starts as root, starts the keeper, and only then gives root up (`rights`): no privileged program is ever reached from outside, no
set-user-ID file is needed, and nobody but the agent holds the other end. The keeper itself stays: an unprivileged agent could not start it
again, and it does too little to fail (a frame in, a rule checked, a frame out). What can hang or crash, the driver's library, runs in a
worker that the keeper kills and starts anew. A keeper that ends all the same ends the agent too, so that whoever started the agent
(kubelet, systemd) starts both.

The kubelet's socket is not read here: the keeper connects and hands the connection over, and gRPC parses its answers without root (`door`).
"""
