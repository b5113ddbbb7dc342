"""Measures checkpoints: what is measured is the `Completer` that is served."""
