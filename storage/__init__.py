"""Storage: adapters of the storage port, chosen by the scheme of a URL.

`Database` is the port. `sqlite:///` is `agentos.storage.database.SQLiteDatabase`, `memory://` is
`agentos.storage.memory.MemoryDatabase`; each is imported only where it is used, since Peewee alone
takes a tenth of a second.
"""

from agentos.core.ports import Database

__all__ = ["Database"]
