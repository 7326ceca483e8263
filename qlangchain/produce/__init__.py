"""Making artifacts: one file per method, each publishing a complete, checked file or nothing."""
