"""What follows a remote collection and holds a lease: pure courses that the Kubernetes adapters carry out."""
