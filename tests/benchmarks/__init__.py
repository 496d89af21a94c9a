"""What `make bench` measures: each figure only after its result was asserted right."""
