"""Names beside the points of a figure, none over another."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

_BESIDE = ((6, -9, "left"), (6, 4, "left"), (-6, 4, "right"), (-6, -9, "right"))
"""Where a name may start, in points from its own, and which end of it that is."""
_MARKER = 3.5
"""Half the width of a marker, in points."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A name and where it belongs, in the units of the axes."""

    at: tuple[float, float]
    text: str
    color: str


def label_points(axes: Axes, labels: Sequence[Label], *, n_shown: int) -> None:
    """Write names, the first first; one for which there is no room is left out.

    Args:
        axes: With its limits and scales as they will be.
        labels: Of all points that names must not cover.
        n_shown: How many of them, from the first, are to be written.
    """
    reach = _MARKER * axes.figure.dpi / 72
    spots = axes.transData.transform([label.at for label in labels])
    taken = [Bbox([spot - reach, spot + reach]) for spot in spots]
    for label in labels[:n_shown]:
        for x, y, side in _BESIDE:
            text = axes.annotate(
                label.text, label.at, (x, y), textcoords="offset points", ha=side, fontsize=7,
                color=label.color, path_effects=[withStroke(linewidth=2.5, foreground="white")],
                parse_math=False,  # names of folders may hold any sign
            )  # fmt: skip
            box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
