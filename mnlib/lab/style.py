"""The book's figures: colours, lines and sizes."""

import matplotlib.pyplot as plt

__all__ = ["COLOURS", "style"]

# Okabe and Ito's colours, which colour-blind readers can tell apart; the line styles are for
# readers in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def style() -> None:
    """Set matplotlib's parameters for the book: 6.5 in wide, light grid, colours and dashes."""
    from mnlib.lab import figures  # needs IPython, which those who want the colours may lack

    figures.offer()
    plt.rcParams.update(
        {
            "figure.figsize": (6.5, 3.6),
            "figure.dpi": 120,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=COLOURS) + plt.cycler(linestyle=_LINES),
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.alpha": 0.3,
            "font.size": 9,
            "legend.frameon": False,
            "svg.fonttype": "none",  # as text, half the size
            "svg.hashsalt": "mnlib",  # each build names what is in a drawing alike
        }
    )
