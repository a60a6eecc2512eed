"""The book's inputs: real ones where they are there, drawn ones everywhere.

Three tiers: *embedded* (no network and no data), *real data* (what :func:`fetch` brought, or
``MNLIB_DATA`` names), *full training* (:mod:`mnlib.lab.experiments`). Only :func:`fetch` touches
the network.
"""

from mnlib.lab.data.download import fetch
from mnlib.lab.data.drawing import drawn_flowers
from mnlib.lab.data.readers import CLASSES, Photographs
from mnlib.lab.data.store import Dataset, folders, load, packed_flowers, status, tier

__all__ = [
    "CLASSES",
    "Dataset",
    "Photographs",
    "drawn_flowers",
    "fetch",
    "folders",
    "load",
    "packed_flowers",
    "status",
    "tier",
]
