"""What is measured, on which data, and with which stopwatch and gauge."""
