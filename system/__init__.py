"""What the listener needs of the system: files, HTTP, the log. It knows nothing of items or of iconik."""
