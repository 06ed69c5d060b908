"""Other durable or distributed runners on the same job: `make bench-peers`.

Each is in an environment of its own (build/peers), set up as its own documentation says, in a
module `on_NAME` that imports nothing of Agent OS.
"""
