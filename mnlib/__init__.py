"""Tested code of the executable book *A Deep Dive into MobileNet*.

Floors, each importing only from its own and those before it: numerics (``pca``, ``ode``,
``memory``), blocks (``separable``, ``blocks``, ``residual``), ``models``, ``data``, training and
recorded runs (``runs``, ``training``, ``slices``, ``flowers``, ``experiments``), ``claims``, what
the chapters share (``book``, ``diagrams``, ``architecture``), the command line (``cli``).
"""

__version__ = "0.1.0"
