"""Contract suites for adapters: run them against a transport or a storage of your own."""
