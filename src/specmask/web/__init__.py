"""Pages a sampler's work can be looked at in."""
