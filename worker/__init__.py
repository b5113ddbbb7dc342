"""The glue: takes completions from the queue and runs the model on them. Only here are both sides known."""
