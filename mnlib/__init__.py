"""Tested code of the executable book *A Deep Dive into MobileNet*, in two houses.

This one is what a reader of the slides reads: ``separable`` (chapter 2), ``pca`` (3), ``ode`` and
``residual`` (4), ``cifar`` (5), ``gates`` (6), ``mobilenet`` (1 and 7), and what networks cost
(``cost``). It needs PyTorch only. How the book's numbers came about is in :mod:`mnlib.lab`, of
which nothing here knows.
"""

__version__ = "0.1.0"
