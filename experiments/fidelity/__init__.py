"""How far the simulator is from measurements: calibration, validation and the published error table."""
