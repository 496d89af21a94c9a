"""A stateful API server on loopback, strict where the real one is strict, and hostile on demand."""
