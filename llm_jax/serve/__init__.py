"""Models behind a local server: an engine, what guards it, and interfaces to it."""
