"""GPUs through NVIDIA's management library, in a child process that can be killed when a driver call never returns."""
