"""Controller and agents killed and stopped at each phase, and restarted on old, lost and torn records, over real gRPC."""
