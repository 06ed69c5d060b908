"""The package map: `transports/` and `storage/` install as `agentos.transports`, `agentos.storage`."""

from setuptools import setup

setup(
    packages=[
        "agentos",
        "agentos.agents",
        "agentos.cli",
        "agentos.core",
        "agentos.core.messages",
        "agentos.loadtest",
        "agentos.runtime",
        "agentos.simulation",
        "agentos.storage",
        "agentos.testing",
        "agentos.transports",
    ],
    package_dir={
        "agentos": "agentos",
        "agentos.storage": "storage",
        "agentos.transports": "transports",
    },
    package_data={"agentos": ["py.typed"]},
)
