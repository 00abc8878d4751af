"""Campaigns against the whole tool: kills, damaged files, full disks. `make torture` runs them; CI does not."""
