"""Fuzz targets for what comes off the wire: `python -m tests.fuzz`."""
