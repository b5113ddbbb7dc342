"""The method: arrays in, a mesh out. Knows no web, no queue and no file that a user sent."""
