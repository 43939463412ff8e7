"""Small batches compared with themselves: each pass in one launch, without copies."""
