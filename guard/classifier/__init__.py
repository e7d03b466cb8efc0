"""The guard model: its network, calibration, training, data and run-time scorer."""
