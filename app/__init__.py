"""The service: HTTP, its contract, scans and their storage. It knows no torch, no model and no worker."""
