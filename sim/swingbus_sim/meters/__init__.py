"""Power meters on the true physics: averaging, lag, gain error, and the registers that Modbus TCP clients read."""
