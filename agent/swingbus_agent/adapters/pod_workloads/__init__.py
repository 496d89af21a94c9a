"""Pods as a bank's workloads: `kubelet` asks who holds which GPU, `driver` makes a `WorkloadDriver` of the answers.

Nothing here has a way to the API server, or a token: pods are started and ended by the controller and Kubernetes.
"""
