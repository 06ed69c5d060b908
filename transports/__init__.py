"""Adapters of the transport port: `inproc://` in one process, `tcp://` and `ipc://` on ZeroMQ."""
