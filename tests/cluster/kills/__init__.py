"""Controller and agents killed at each step of each flow, on real nodes."""
