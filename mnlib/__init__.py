"""Tested code of the executable book *A Deep Dive into MobileNet*.

Floors, each importing only from those before it: numerics (``pca``, ``ode``), blocks
(``separable``, ``blocks``), ``models``, ``data``, training and recorded runs (``runs``,
``training``), the book's own helpers (``book``), the command line (``cli``).
"""

__version__ = "0.1.0"
