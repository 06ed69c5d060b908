"""What this machine does with Agent OS: `make bench`."""
