"""The fair benchmark against PriorityClass: fresh clusters, the same physics, arrivals and sampler for all, `make bench-kube`."""
