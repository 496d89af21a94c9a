"""A real Kubernetes cluster on one machine, for tests and for trying out: one command up, one down.

Everything is the real thing (API server, controller-manager, scheduler, etcd, kubelets), built once from the Go modules that `go/go.mod`
names; nothing is downloaded ready-made and no container engine is needed. Nodes are of two kinds: KWOK's, which are objects only and show
scale, and real ones (root needed), which run processes. What is started listens on loopback or in namespaces of its own, is recorded by
id before it runs, and is ended by that id, also by a later start or stop after a crash.

Decides nothing about power and imports nothing of the controller or the agent: it is the ground that they are tried on.
"""
