"""One pass over prompts: sites, edits, batches, measurements, checkpoints, and the engine that runs them."""
