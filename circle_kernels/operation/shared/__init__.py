"""The operation on a batch that several processes share."""
