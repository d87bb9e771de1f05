"""Studies over many processes and machines, by Ray (the extra ``ray``), and batches of cases in `datasets.map`.

    study.run(model, cases, "run", tokenizer=tokenizer, ray=study.Ray("org/name", num_gpus=1))

Ray Data gives packs of cases to a pool of actors, which have a model each. What becomes of a pack comes back, files
included, to the process that runs the study, and that one alone writes, as it always does: the workers need no folder
that all machines see. A worker that is killed is started again by Ray, and computes the pack that it was at once more;
nothing of that was in the folder, so that nothing is lost and nothing is there twice. A pack that has cost four workers
their lives ends the run.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from .. import question
from ..graph import GraphSpec
from ..hf import check_edges, check_hooks, decoder_layers
from ..memory import Memory
from ..ops import read_tolerance
from ..reading import parsed
from ..rules import Rules, as_rules
from ..tokenizer import read as read_tokenizer
from . import manifest, observed, passes
from .cases import Case, read_cases
from .faults import first_line
from .folder import PLACES, put
from .passes import Finished, How

_RETRIES = 3  # of a pack whose worker has died: some may be what kills them

Loaded = Callable[[], tuple]


class Explainer:
    """Explains batches of cases: a callable class for Ray Data, and a function for `datasets`.

        ray.data.from_items(cases).map_batches(
            Explainer, fn_constructor_kwargs={"model": "org/name"}, num_gpus=1,
            compute=ray.data.ActorPoolStrategy(size=8),
        )
        datasets.Dataset.from_list(cases).map(Explainer("org/name"), batched=True, batch_size=64)

    A batch is a dict of columns, the fields of a case as `lrp_fast.study.read_cases` describes them; or of one column
    ``case``, whose rows are cases as JSON, as no column of Arrow's holds strings and numbers both. Back come:

        id, status, why     "done", "failed" or "refused", and the sentence ("" of one that is done)
        value               what was explained; NaN where there is nothing
        figures             JSON: what the table of a study says of it, `lrp_fast.study.table`
        results, graphs, observed
                            bytes: the files of a study's folder, b"" where there is none; of the first,
                            ``safetensors.torch.load(row["results"])["layers"]`` is (L + 1, N) relevance
        sum, weights        of its tokens, and of the model: what is compared with the manifest
        seconds             that it took, its share of a pass

    Args:
        model: a name or folder, of a causal language model and its tokenizer, for transformers' ``from_pretrained``;
            or a function without arguments that gives a model in eval mode, and its tokenizer or None. It is called
            with the first batch, once a process.
        rule, graph, memory, tolerance: as of `lrp_fast.attribute`.
        observe: as of `lrp_fast.study.run`.

    Raises:
        ValueError, TypeError: for arguments that no case could be explained with.
    """

    def __init__(
        self,
        model: str | os.PathLike | Loaded,
        *,
        rule: str | Rules = "attnlrp",
        graph: GraphSpec | None = None,
        memory: Memory | None = None,
        tolerance: float = 0.0,
        observe: Mapping[str, int] | Sequence[str] = (),
    ) -> None:
        self._load = model if callable(model) else partial(_from_name, os.fspath(model))
        self._how = How(as_rules(rule), graph, memory, read_tolerance(tolerance), None, observed.read(observe))
        self._loaded, self._longest = None, 0

    def __getstate__(self) -> dict:
        """Without the model: `datasets` makes a digest of a function's state, and each process loads its own."""
        return self.__dict__ | {"_loaded": None, "_longest": 0}

    def _ready(self) -> tuple:
        """The model, how cases are explained, and the digest of its weights."""
        model, tokenizer = self._load()
        question.check_model(model)
        check_hooks(model)
        if self._how.graph is not None:
            self._how.graph.check(len(decoder_layers(model)))
            check_edges(decoder_layers(model))
        observed.check(self._how.observe, model)
        return model, self._how._replace(tokenizer=read_tokenizer(tokenizer)), manifest.fingerprint(model)

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, list]:
        if self._loaded is None:
            self._loaded = self._ready()
        model, how, weights = self._loaded
        begun, asked, rows = time.perf_counter(), {}, []
        for case in read_cases(_rows(batch)):
            why = case.left_out
            if why is None:
                try:
                    asked[case.id] = passes.ask(model, case, how)
                except ValueError as error:
                    why = str(error)
            rows.append({"id": case.id, "status": "refused", "why": why or "", "sum": 0})
        found = passes.finish(model, list(asked.values()), how, self._longest) if asked else []
        done = dict(zip(asked, found, strict=True))
        for row in rows:
            one = done.get(row["id"], Finished(row["why"], dict, {}))
            figures = one.figures()
            if row["id"] in done:
                row |= {"status": "failed" if one.why else "done", "why": one.why or "", "sum": asked[row["id"]].sum}
                self._longest = max(self._longest, figures.get("num_tokens", 0))
            row |= {"value": figures.get("value", float("nan")), "figures": json.dumps(figures)}
            row |= {place: _bytes(one.files[place]) if place in one.files else b"" for place in PLACES}
        each = (time.perf_counter() - begun) / len(rows)
        rows = [row | {"weights": weights, "seconds": each} for row in rows]
        return {name: [row[name] for row in rows] for name in rows[0]}


def _rows(batch: Mapping[str, Sequence]) -> list:
    if "case" in batch:
        return [parsed(str(text)) for text in batch["case"]]
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _bytes(write: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(path := Path(folder) / "file")
        return path.read_bytes()


def _from_name(name: str) -> tuple:
    import transformers

    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    return model.to(device).eval(), transformers.AutoTokenizer.from_pretrained(name)


@dataclass(frozen=True)
class Ray:
    """The workers of a study.

    Attributes:
        model: as of `Explainer`; the same that `lrp_fast.study.run` is given, which plans with it what they compute.
        address: of a running Ray, "auto" for the one that this machine is part of; None for one of this machine's own,
            which ends with the run. A Ray that this process has begun already is taken as it is.
        workers: how many; None for as many as there are GPUs, or CPUs where ``num_gpus`` is 0.
        num_gpus: of a worker; each sees its own as "cuda".
    """

    model: str | os.PathLike | Loaded
    address: str | None = None
    workers: int | None = None
    num_gpus: float = 0

    def check(self) -> None:
        """Before anything is computed.

        Raises:
            ModuleNotFoundError: without Ray.
        """
        try:
            import ray.data  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("--ray and ray= need Ray: pip install 'lrp-fast[ray]'") from error

    def finish(
        self, how: How, packs: list[list[Case]], weights: str
    ) -> Iterator[tuple[int, list[Finished], list[int], float]]:
        """Of each pack, as it is finished, what `lrp_fast.study.runner` asks of one.

        Raises:
            RuntimeError: if a worker fails otherwise than by its death, or has other weights.
        """
        if not packs:
            return
        import pyarrow
        import ray

        own = not ray.is_initialized()
        if own:
            alone = {"include_dashboard": False} if self.address is None else {}
            ray.init(self.address or "local", logging_level="error", log_to_driver=False, **alone)
        try:
            kind = "GPU" if self.num_gpus else "CPU"
            there = ray.cluster_resources().get(kind, 0) / (self.num_gpus or 1)
            given = {"model": self.model, "rule": how.rules, "graph": how.graph, "memory": how.memory}
            given |= {"tolerance": how.tolerance, "observe": how.observe or ()}
            tables = [pyarrow.table({"case": list(map(_text, cases))}) for cases in packs]
            found = ray.data.from_blocks(tables)  # which leaves them as they are; a whole block is a batch
            found.context.enable_progress_bars = found.context.print_on_execution_start = False
            found.context.raise_original_map_exception = True
            found = found.map_batches(
                Explainer, fn_constructor_kwargs=given, batch_size=None, num_cpus=1, num_gpus=self.num_gpus or None,
                compute=ray.data.ActorPoolStrategy(size=self.workers or min(len(packs), max(1, int(there)))),
                ray_remote_args_fn=lambda: {"max_task_retries": _RETRIES},
            )  # fmt: skip
            yield from _whole(found.iter_batches(batch_size=None, batch_format="pyarrow"), packs, weights)
        except ray.exceptions.RayError as error:
            why = first_line(getattr(error, "cause", None) or error)
            raise RuntimeError(
                f"Ray's workers failed ({why}): what is finished is kept, and the same again goes on there"
            ) from error
        finally:
            if own:
                ray.shutdown()


def _text(case: Case) -> str:
    return json.dumps(replace(case, fields={}).as_line())


def _whole(batches, packs: list[list[Case]], weights: str) -> Iterator[tuple[int, list[Finished], list[int], float]]:
    """Packs whose cases have all arrived: Ray cuts what is large."""
    home = {case.id: number for number, cases in enumerate(packs) for case in cases}
    there: dict[int, dict[str, dict]] = {}
    for batch in batches:
        for row in batch.to_pylist():
            if row["weights"] != weights:
                raise RuntimeError("the workers' model has other weights than the one given: load the same for both")
            number = home[row["id"]]
            rows = there.setdefault(number, {})
            rows[row["id"]] = row
            if len(rows) == len(packs[number]):
                rows = [there[number][case.id] for case in packs[number]]
                del there[number]
                sums, seconds = [one["sum"] for one in rows], sum(one["seconds"] for one in rows)
                yield number, list(map(_finished, rows)), sums, seconds


def _finished(row: dict) -> Finished:
    if row["status"] != "done":
        return Finished(row["why"], dict, {})
    files = {place: partial(put, data=row[place]) for place in PLACES if row[place]}
    return Finished(None, partial(json.loads, row["figures"]), files)
