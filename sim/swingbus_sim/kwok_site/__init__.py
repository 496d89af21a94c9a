"""What stands behind KWOK's nodes: GPUs that draw, caps that bite late, kubelets that choose, agents that report, meters, and a sampler.

KWOK's pods are entries in etcd, so "the pod is gone" would prove "the GPU is free" by construction. Here both have lives of their own:
a process begins a while after its pod was bound and ends a while after it was told to, or never. What agents say comes from these
processes and limits alone. The same model stands behind every contender of `make bench-kube`.
"""
