"""Model files: what they say about themselves, read with limits before anything else touches them."""
