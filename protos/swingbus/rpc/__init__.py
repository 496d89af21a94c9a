"""gRPC plumbing that both sides share: faults on the wire, who calls, what callers may do, channels and servers."""
