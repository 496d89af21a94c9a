"""Workloads as processes of this host that outlive the agent: customers' jobs must not die with it."""
