"""Pages of a study: a folder that opens in a browser, offline, and asks no host.

    OUT/index.html        what was run, plots, and the cases: to be sorted, searched and filtered
    OUT/cases/KEY.html    a page a case, as `lrp_fast.report` writes it; KEY as in the run's folder
    OUT/comparison.html   where other runs are compared with the first: what differs, and the cases side by side
    OUT/runs/DIGEST/      the pages of each of those others, laid out like OUT
    OUT/pages.json        which run it is of, and digests of what the pages of cases are made from
    OUT/.lock             as in a run's folder

A page of a case is written once: one that is younger than its result, and than what observers saw, stays, so that
writing goes on where it was ended.
The files in lrp_fast/report are what a browser sees; here is what is put into them.
"""

from .write import page

__all__ = ["page"]
