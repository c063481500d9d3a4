"""The rig that proves what the server promises under load and faults: `python -m chaos`."""
