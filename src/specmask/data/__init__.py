"""Text → symbols → batches."""
