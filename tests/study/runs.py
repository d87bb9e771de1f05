"""What tests of a run have in common."""

from lrp_fast import GraphSpec
from lrp_fast.study import Folder, passes

SPEC = GraphSpec(topk=2)


def packs(folder):
    return [unit["ids"] for unit in Folder(folder).manifest()["packs"]]


def raising(error, when, plain=None):
    """In place of `explain_pack`, or what is taken in the same way: raises ``error()`` where ``when(asked)``."""
    plain = plain or passes.explain_pack

    def call(model, asked, *how):
        if when(asked):
            raise error()
        return plain(model, asked, *how)

    return call
