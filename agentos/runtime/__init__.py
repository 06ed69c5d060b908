"""Where threads, sockets and clocks meet the core."""
