"""`attribute`, and what it returns."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

import torch

from . import prompt as prompts
from . import question, saved
from .explained import Explained
from .graph import Graph, GraphSpec, transition
from .hf import check_images_edges, device_of, reads_causally, reads_images_both_ways, share_a_row
from .memory import Memory, planned
from .observers.room import Room
from .ops import read_tolerance
from .question import Question
from .rules import Rules
from .sources import Sources, divide
from .stream import Passed, Progress, propagate
from .tokenizer import read as read_tokenizer


@dataclass(frozen=True, eq=False)  # tensors have no one truth value to compare by
class Attribution:
    """Relevance of every hidden state for one model decision.

    Attributes:
        value: what was distributed: a logit, a logit difference, or a sum of them over positions.
        layers: (L + 1, N) relevance of node (layer, position); layer 0 is the embeddings, layer l the output of
            decoder layer l - 1. float32, float64 for a float64 model.
        input_ids: (N,) int64, the tokens that the model read, with a common prefix of the target strings, or an answer.
        explained: what was explained, in words and ids.
        rules: the rule that propagated it.
        model: name of the model; of a directory given by its full path, the last part.
        tokens: N strings, as they read in the text (a leading space kept); None without a tokenizer that has them.
        special: N flags, the tokenizer's special tokens; None without a tokenizer that tells them.
        graph: the sparse graph of the same pass, None unless it was asked for.
        tolerance: the share of the attention's mass that each layer was allowed to leave out of the backward pass.
        dropped: (L,) float64, the share that it did leave out, all 0 where ``tolerance`` is.
        observed: what the observers of ``observe=`` kept of this result's target, in their order; None without
            any. A file does not hold it.
        sources: what the prompt's sources carry, None unless they were asked for.
        prompt_tokens: how many of the N tokens are the prompt's; the rest is an answer's, or a common prefix of target
            strings. None of a file from before it was kept.
    """

    value: float
    layers: torch.Tensor
    input_ids: torch.Tensor
    explained: Explained
    rules: Rules
    model: str = ""
    tokens: list[str] | None = None
    special: list[bool] | None = None
    graph: Graph | None = None
    tolerance: float = 0.0
    dropped: torch.Tensor | None = None
    observed: list | None = None
    sources: Sources | None = None
    prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.dropped is None:
            object.__setattr__(self, "dropped", torch.zeros(len(self.layers) - 1, dtype=torch.float64, device="cpu"))

    @property
    def relevance(self) -> torch.Tensor:
        """(N,) relevance of the input tokens, which is layer 0."""
        return self.layers[0]

    def by_source(self, sources, prompt=None, tokenizer=None) -> Attribution:
        """This result with `Sources`: what the parts of its prompt carry together.

        Args:
            sources: as in `lrp_fast.attribute`.
            prompt, tokenizer: as `attribute` was given them; characters are then those of that text, and a chat's
                ``"turns"`` are known. Without the prompt, the text is what the tokenizer decodes the prompt's tokens
                to, special ones included; without either, the texts of those tokens, one behind the other. What stands
                behind the prompt, an answer's tokens, is in none of its text.

        Raises:
            TypeError, ValueError: as `attribute`; for a prompt of other tokens than this result's, or of fewer; and for
                sources told by text, of a result that does not say where its prompt ends (a file from before
                ``prompt_tokens`` was kept).
        """
        tokenizer = read_tokenizer(tokenizer)
        if prompt is not None:
            given = prompts.read(prompt, tokenizer)
            if not any(torch.equal(given.ids, self.input_ids[:length]) for length in self._lengths()):
                behind = "" if self.prompt_tokens in (None, len(self.input_ids)) else ", without what stands behind it"
                raise ValueError(f"prompt has other tokens than this result: give the whole that was explained{behind}")
        else:
            given = None if self.prompt_tokens is None else prompts.Prompt(self.input_ids[: self.prompt_tokens])
        found = divide(sources, given, self.tokens, tokenizer, len(self.input_ids))
        return replace(self, sources=Sources.of(self.layers, found))

    def _lengths(self) -> list[int]:
        """How many tokens the prompt may have: all, in a file that does not say, or those before an answer, where the
        positions explained are those of one."""
        if self.prompt_tokens is not None:
            return [self.prompt_tokens]
        positions, size = [term.position for term in self.explained.terms], len(self.input_ids)
        return [size, positions[0] + 1] if positions == [*range(positions[0], size)] else [size]

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file, without the graph, which `Graph.save` keeps in a file of its own.

        It appears whole or not at all (written aside, then renamed).

        Raises:
            TypeError, ValueError: for an attribution whose parts do not fit each other, which `load` would refuse.
            OSError: if it cannot be written.
        """
        saved.save(self, path)

    def _repr_html_(self) -> str:
        """What a notebook shows: a static fragment; `lrp_fast.report.html` writes the whole page."""
        from .report.notebook import attribution

        return attribution(self)


def load(path: str | os.PathLike) -> Attribution:
    """Read what `Attribution.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no lrp_fast attribution, or its parts do not fit each other: one sentence.
    """
    return saved.load(Attribution, path)


def attribute(
    model,
    input_ids,
    target=None,
    contrast=None,
    position=-1,
    rule: str | Rules = "attnlrp",
    graph: GraphSpec | None = None,
    memory: Memory | None = None,
    tokenizer=None,
    progress: Progress | None = None,
    tolerance: float = 0.0,
    answer=None,
    by_token: bool = False,
    sources=None,
    observe=(),
) -> Attribution | list[Attribution]:
    """Distribute one decision of a language model over its input tokens and hidden states.

    Layer-wise relevance propagation with the AttnLRP rules (Achtibat et al., ICML 2024) from a contrast of logits, as
    in "Contrastive Attribution in the Wild" (arXiv 2604.17761). Relevance is ``x * g``, g the relevance gradient.

    Args:
        model: a ``*ForCausalLM`` of a supported family, in eval mode; or a ``*ForSequenceClassification`` (reward
            models and rerankers too) or ``*ForTokenClassification`` on the same layers, whose labels stand in the place
            of tokens as targets and contrasts, by number or name; or an encoder with such labels, or a
            ``*ForMaskedLM``, which reads tokens in both directions. It is left as it was.
        input_ids: the prompt: (N,) or (1, N) token ids in a tensor, an array or a list; what a tokenizer returned for
            one prompt, whose padding is left out; or, together with ``tokenizer``, a string, which becomes what
            ``tokenizer(prompt)`` makes of it, or chat messages, ``[{"role": "user", "content": "..."}, ...]``, which
            the tokenizer's chat template writes, up to where the assistant's answer begins (or goes on, if the last
            message is the assistant's). ``result.explained.note`` says what was added or lost on the way.
            Of a model that reads images (the README names them), what its processor returned for one prompt, images
            included: the embeddings in their tokens' places are nodes like any other's, and what makes them is left
            out, as the note says. It runs within the pass, and what it takes comes on top of what ``memory`` bounds.
        target: token id, string, or None for the model's own first choice. An array of one id is that id, of more a
            list. ("logprob", token) is that token's log-probability, which takes no contrast. A tuple holds a target
            for each of the positions, all of one kind, whose sum is explained. A function of the logits at the
            positions, (P, V) in float32 or float64, whatever scalar it makes of them in torch: a probability, odds.
        contrast: what is subtracted: a token id or string, "mean" (the mean of all logits), ("top", k) (the mean of the
            k best tokens other than the target), or None for the plain logit. Strings of several tokens are compared at
            the first token where they diverge, behind their common prefix.
            With a tuple of targets, a tuple holds a contrast for each; ("top", k) is always what it says.
            A list of targets, of contrasts, or of both in pairs, explains each on the same context: the forward pass,
            and what a layer has to compute again, is then shared.
        position: the position whose next-token logits are meant (or whose labels), or a sequence of them, whose sum is
            explained. A model that classifies the whole prompt reads it at the last token that is not its pad token, an
            encoder at the first: this one alone is taken. Of a ``*ForMaskedLM`` a position's own token is meant, and -1
            is the one mask token of the prompt, whatever stands last; any other position is taken as it is.
        rule: "attnlrp", "cp", "gradient" or `lrp_fast.Rules`.
        graph: a `lrp_fast.GraphSpec`: the graph is built in the same pass and comes as ``result.graph``.
        memory: what the pass may take; None for what the machine has free. `lrp_fast.plan` says what comes of it.
        tokenizer: needed for strings and chats; without it the result carries no token texts. A tokenizer of
            transformers, a processor or pipeline that holds one, a ``tokenizers.Tokenizer``, or any object that encodes
            and decodes. What it cannot do for the words of the result is left out, with a note.
        progress: called as ``progress(phase, layers_done, layers)`` with phase "forward", then "backward".
        tolerance: above 0, the backward pass is bounded: in each layer it leaves out the tiles of queries and keys
            whose attention hands back least, as many as hold no more than this share of all that it could hand back
            (sum |u_i| P_ij, u the relevance gradient at a head's output). ``result.dropped`` says what was left out of
            each layer. In long contexts that saves time; 0 is the exact pass. The README says what error to expect.
        answer: in place of ``target`` and ``position``, a string or token ids that stand behind the prompt: the sum of
            the logits of all its tokens, each at the position before it, is explained; of their log-probabilities for
            ("logprob", answer). All but its last token are read, and count among the result's N. A contrast of "mean"
            or ("top", k) is each token's own; one of a string or ids is a second answer: their difference is that of
            the two logits where they diverge, as up to there it is 0, and further on they answer different prompts
            (`lrp_fast.compare_answers` explains both).
        by_token: of an answer, each token is explained by itself, in passes that share what several targets share;
            their relevance adds up to that of the answer.
        sources: parts of the prompt whose relevance is added up, as ``result.sources``; tokens in none of them form
            the source "(rest)". A dict of names and spans: (start, end) of tokens, a range of their positions,
            ``("chars", start, end)`` of the prompt's text (what the tokenizer decodes it to, special tokens included,
            where it came as ids), a string that stands in it once, or a list of such; ``"turns"``, the texts of a
            chat's messages, without what the template writes around them; ``"images"``, the tokens in whose places each
            of the prompt's images is read; or a splitter, which is called with the text and gives its pieces, one
            behind the other: strings that stand in it, or (start, end) of characters. A token belongs to the span that
            holds its first character that is no blank; spans that share a token are refused.
            `Attribution.by_source` does the same later.
        observe: observers, which are shown hidden states and relevance gradients as the pass goes down the layers, and
            change no number of it: those of `lrp_fast.observers`, and any ``observer(seen)`` of one's own. What they
            keep is ``result.observed``; what they look at comes on top of what ``memory`` bounds.

    Returns:
        One result; for lists of targets or contrasts, and for an answer ``by_token``, a list of them, in their order.

    Raises:
        ValueError, TypeError: one sentence that names the culprit and the mend, before any layer is run where possible.
        UnsupportedModuleError: if the model holds a module that no rule covers.
    """
    if graph is not None and not isinstance(graph, GraphSpec):
        raise TypeError(f"graph must be a lrp_fast.GraphSpec, not {type(graph).__name__}")
    tolerance = read_tolerance(tolerance)
    asked = question.read(model, input_ids, target, contrast, position, rule, tokenizer, answer, by_token)
    found = None
    if sources is not None:
        found = divide(sources, asked.prompt, asked.tokens, asked.tokenizer, len(asked.ids))
    results = explain(model, asked, graph, memory, progress, tolerance, observe)
    if found is not None:
        results = [replace(one, sources=Sources.of(one.layers, found)) for one in results]
    return results if asked.several else results[0]


def explain(
    model,
    asked: Question,
    graph: GraphSpec | None,
    memory: Memory | None,
    progress: Progress | None,
    tolerance: float,
    observe=(),
) -> list[Attribution]:
    """`attribute` for a question that has been read: one result a target."""
    if graph is not None and asked.images:
        check_images_edges(model)
    room = Room(observe, model, asked)
    counts = {"positions": len(asked.positions), "targets": len(asked.requests)}
    given = (model, len(asked.ids), asked.rules, memory)
    plan = planned(*given, graph=graph, tolerance=tolerance, **counts)
    found: list[tuple[float, Explained]] = []
    transitions: list[list] = [[] for _ in asked.requests]

    def crossing(passed: Passed) -> None:
        for layer, nodes in ((passed.layer + 1, passed.relevance_out), (passed.layer, passed.relevance_in)):
            if not nodes.isfinite().all():
                raise not_finite(layer, model)
        transitions[passed.target].append(transition(graph, passed, found[passed.target][0]))

    device = device_of(model.get_input_embeddings())
    given = (model, asked.ids[None].to(device), asked.positions, room.objective(found), asked.rules, plan, progress)
    relevance = propagate(*given, crossing if graph else None, watch=room.watch, images=asked.images)
    parts = zip(found, relevance, transitions, strict=True)
    results = [finished(model, asked, *what, *passed, tolerance, graph, edges) for what, passed, edges in parts]
    return [replace(one, observed=room.observed(i)) for i, one in enumerate(results)]


def finished(
    model,
    asked: Question,
    value: float,
    explained: Explained,
    layers: torch.Tensor,
    dropped: torch.Tensor,
    tolerance: float,
    graph: GraphSpec | None,
    transitions: list,
) -> Attribution:
    """The result of one target, from its relevance (L + 1, N) and its transitions from the last layer down.

    Raises:
        ValueError: for relevance that is not finite.
    """
    bad = (~torch.isfinite(layers)).any(-1).nonzero().flatten().tolist()
    if bad:
        raise not_finite(bad[-1], model)
    name = getattr(model.config, "name_or_path", "")
    name = os.path.basename(name) if os.path.isabs(name) else name  # results get shared: no paths of this machine
    nothing = _nothing(value, layers[0], explained, model)
    explained = replace(explained, note=" ".join(filter(None, [explained.note, nothing])))
    about = (asked.rules, name, asked.tokens, asked.special)
    about += (None, tolerance, dropped)
    result = Attribution(value, layers, asked.ids, explained, *about, prompt_tokens=len(asked.prompt.ids))
    if graph is None:
        return result
    causal = reads_causally(model) and not (asked.images and reads_images_both_ways(model))
    return replace(result, graph=_graph(graph, result, transitions[::-1], causal))


def _nothing(value: float, relevance: torch.Tensor, explained: Explained, model) -> str:
    """A note, if there is nothing to distribute, or nothing of it arrives at the input tokens."""
    if relevance.any():
        return "The value is exactly 0.0: what speaks for it and what speaks against it cancel." if value == 0.0 else ""
    pairs = [(term.target.id, term.contrast.id) for term in explained.terms if term.contrast is not None]
    if len(pairs) == len(explained.terms) and all(share_a_row(model, *pair) for pair in pairs):
        return (
            f"The relevance is zero everywhere: {explained.of}s {pairs[0][0]} and {pairs[0][1]} have equal rows in the "
            f"model's head, as {explained.of}s have that were never trained, so that their logits are always the same."
        )
    return (
        "The relevance of every input token is zero: what is explained does not depend on them, or by less than "
        f"{str(model.dtype).removeprefix('torch.')} can hold."
    )


def not_finite(layer: int, model) -> ValueError:
    mend = "; load the model in float32 or bfloat16" if model.dtype == torch.float16 else ""
    return ValueError(f"relevance is not finite from layer {layer} down: {model.dtype} cannot hold it{mend}")


def _graph(spec: GraphSpec, result: Attribution, transitions: list, causal: bool) -> Graph:
    """The graph of the transitions, from the lowest up."""
    from . import __version__  # which imports this module first; a build that is not installed has no metadata

    manifest = {
        "model": result.model,
        "rules": asdict(result.rules),
        "explained": asdict(result.explained),
        "value": result.value,
        "spec": asdict(spec),
        "tolerance": result.tolerance,
        "dropped": result.dropped.tolist(),
        "versions": {"lrp_fast": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }
    self_edges = torch.stack([own for _, _, own in transitions])
    edges = [(one, dropped) for one, dropped, _ in transitions]
    return Graph.from_transitions(result.layers, self_edges, edges, result.tokens, manifest, causal)
