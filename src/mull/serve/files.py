"""The files that the settings name beside the model's: who may ask, what seals and where responses lie.

They are opened before anything is loaded, so that a mistake in one of them is said at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from mull.errors import UserError
from mull.search.allocate import load_calibration
from mull.serve.auth import admin_key, read_keys
from mull.serve.responses_store import Store
from mull.serve.seal import secret
from mull.serve.settings import Settings


@dataclass(frozen=True)
class Files:
    keys: tuple[bytes, ...]  # digests of the API keys; (): none is asked for
    admin: bytes | None  # digest of the admin key; None: nobody may reload over HTTP
    secret: bytes
    store: Store


def opened(settings: Settings) -> Files:
    """UserError for a file that cannot be used. Who opens them closes the store."""
    s = settings
    if s.calibration and (known := load_calibration(s.calibration)).scorer and not s.scorer:
        raise UserError(f"{s.calibration} was calibrated with the scorer {known.scorer}: give it by --scorer")
    keys = read_keys(s.keys) if s.keys else ()
    admin = admin_key(s.admin) if s.admin else None
    return Files(keys, admin, secret(s.secret), Store(s.store, s.store_days, s.store_bytes))
