"""What trains and measures a checkpoint; nothing that serves imports it."""
