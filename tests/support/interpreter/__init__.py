"""What makes a lane of Triton's interpreter: its speed, its faults, what it can be made to show."""
