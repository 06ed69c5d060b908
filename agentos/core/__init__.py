"""The pure core: no threads, sockets, clock, files, randomness of its own, or logging."""
