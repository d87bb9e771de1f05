"""The code of transformers that the rules were written for, so that another release's change of it is noticed here.

Identities of small models do not show every change: a new product in a layer's own code leaves patched logits alone
and passes plain gradients, and an option that is off in these models shows in other people's alone. forms.json has,
for each handler, a digest of every form that its classes have in the releases that these tests passed with: 5.0.0,
5.17.0, 5.23.0 and 5.24.0.
"""

import ast
import hashlib
import inspect
import json
import re
import sys
import textwrap

import pytest
import transformers

from lrp_fast.hf.families import handler_of


class Bare(ast.NodeTransformer):
    """Without annotations, decorators and docstrings, as without comments and line breaks."""

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.returns, node.decorator_list = None, []
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_arg(self, node):
        node.annotation = None
        return node


def form(source):
    """12 hexadecimal digits of what a function or the methods of a class do, but for those that set it up."""
    (thing,) = ast.parse(textwrap.dedent(source)).body
    methods = [node for node in getattr(thing, "body", []) if isinstance(node, ast.FunctionDef)]
    methods = [thing] if isinstance(thing, ast.FunctionDef) else methods
    bare = [ast.unparse(Bare().visit(node)) for node in methods if node.name not in ("__init__", "extra_repr")]
    # transformers 5.24 calls a cache otherwise, and hands it all that the layer was given.
    text = re.sub(r"(\.update\(.*), kwargs=kwargs\)", r"\1)", "\n".join(bare))
    text = re.sub(r"\bcache\b", "past_key_values", text)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def parts(model):
    """(name of what handles it, what transformers calls it, the object), of all that it brings to a model."""
    for cls in {type(part) for part in model.modules() if type(part).__module__.startswith("transformers.")}:
        handler = handler_of(cls)
        yield getattr(handler, "kind", handler.__name__), cls.__name__, cls
    home = sys.modules[type(model).__module__]
    for name in ("apply_rotary_pos_emb", "rotate_half"):
        if hasattr(home, name):
            yield "rotation", name, getattr(home, name)


def test_every_part_of_a_model_has_a_form_that_is_known(family, tiny, root):
    known = json.loads((root / "tests" / "hf" / "forms.json").read_text(encoding="utf-8"))
    for handler, name, part in parts(tiny(family)):
        found = form(inspect.getsource(part))
        assert found in known[handler], (
            f"{name} of transformers {transformers.__version__} is not what handlers.{handler} was written for: read "
            f"what has changed, mend the handler if a rule has to change, then add {found} to forms.json"
        )


PART = '''
class Part(Module):
    def __init__(self, {setting}):
        self.up = Linear({setting})

    def forward(self, x{annotation}):
        {docstring}
        return self.down(self.act(self.gate(x)) * self.up(x)){term}
'''
PLAIN = {"setting": "config", "annotation": "", "docstring": "", "term": ""}


@pytest.mark.parametrize(
    ("what", "becomes", "same"),
    [
        ("setting", "config, device", True),
        ("annotation", ": Tensor", True),
        ("docstring", '"""What it is."""  # and why', True),
        ("term", " * self.scale", False),
        ("annotation", ", mask=None", False),
    ],
)
def test_a_form_is_what_is_computed(what, becomes, same):
    assert (form(PART.format(**PLAIN | {what: becomes})) == form(PART.format(**PLAIN))) == same
