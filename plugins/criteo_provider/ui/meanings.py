"""What the numbers mean, in the words people read."""

from __future__ import annotations

from criteo_provider.core.model import Metric

MEANINGS = {
    Metric.ENTERED: "People who have reached this step: they entered the canvas, and the delays before it are over.",
    Metric.PROCEEDED: "People who went on from this step to the next one. They go on at once; whether Criteo accepted "
    "them is counted apart.",
    Metric.SYNCED: "People of whom Criteo accepted at least one identifier. Lags by the flush interval: 5 s, "
    "unless the canvas says otherwise.",
    Metric.NOT_SYNCED: "People Criteo will not match in this step: no usable identifier among the chosen fields, every "
    "one called invalid by Criteo, consent withdrawn, or superseded by a later entry.",
    Metric.PENDING: "People with an identifier still to be sent, or to be sent again, and none accepted so far.",
    Metric.ERRORED: "People given up because Criteo's API answered with errors all the time they were tried. Lags by "
    "that time: about 13 h, unless the canvas says otherwise.",
    Metric.EXITED: "People who left the canvas because this was its last step.",
}
ON_THEIR_WAY = "People behind a delay who will reach this step when it is over. They are not counted as Entered yet."
LAW = "At every moment, Entered = Users Synced + Users Not Synced + Users Pending + Users Errored."
