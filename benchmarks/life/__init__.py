"""Where a task's time goes: `make bench-profile`."""
