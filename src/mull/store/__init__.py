"""Golden data: every graded trace kept once, and what of it is worth learning from.

`store.py` keeps traces, `records.py` says what one holds, `catalogue.py` is its SQL. `curate.py` chooses chains to
learn from (with `near.py` against near duplicates and `decontaminate.py` against held-out questions), `curriculum.py`
chooses questions to ask next, and `export.py` writes what other trainers read.
"""

from mull.store.catalogue import ChainRow, Count
from mull.store.records import Made, Record, record_of, weights_hash
from mull.store.store import Store

__all__ = ["ChainRow", "Count", "Made", "Record", "Store", "record_of", "weights_hash"]
