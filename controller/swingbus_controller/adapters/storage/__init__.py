"""Storage in standard-library SQLite: the journal, and the telemetry ring with the meter intervals."""
