"""Interchange with DeepSDF's published code, facebookresearch/DeepSDF: experiments in and out, recipes."""
