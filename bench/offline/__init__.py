"""Launch plans and machine code for GPUs that this machine does not have."""
