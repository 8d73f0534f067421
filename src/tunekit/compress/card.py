"""What is told of a proven merge: the card of the merged model, and a line in the record of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.core.files import write_atomic
from tunekit.core.front_matter import as_yaml
from tunekit.model.artefact import CARD
from tunekit.model.names import resolve_name
from tunekit.model.restore import Artefact
from tunekit.plan.plan import Plan
from tunekit.runs.card import Card, write_card
from tunekit.runs.layout import RunFolder
from tunekit.runs.merges import MergePart
from tunekit.runs.record import read_record, write_record


def run_of(found: Artefact) -> RunFolder | None:
    """The run that made an adapter, where its folder holds it still."""
    run = RunFolder(found.folder.parent)
    whole = run.record.is_file() and run.plan.is_file() and run.model.resolve() == found.folder.resolve()
    return run if whole else None


def tell(found: Artefact, proof: dict[str, Any], folder: Path, licence: dict[str, Any], *, alone: bool) -> None:
    """Writes the card of a merged model.

    Args:
        found: the adapter.
        proof: as in merge.json.
        folder: of the merged model.
        licence: the base's licence fields.
        alone: no other adapter was combined with it; then the card tells of its run as well.
    """
    assert found.base is not None
    run, name = run_of(found) if alone else None, found.base.name
    hub = frozenset({name} if resolve_name(name).kind == "hub" else ())
    if run is not None:
        notes = (("How it was merged", "\n".join(_words(proof)) + "\n"),)
        write_card(Card(run, read_record(run), Plan.load(run.plan), hub, model=folder, notes=notes))
        return
    base = name if hub or name.startswith("builtin:") else Path(name).name  # not the place where this machine keeps it
    told = f"`{base}` with a {found.kind_word} adapter merged into its weights."
    lines = [told, "", *_words(proof)]
    head = f"---\n{as_yaml(licence | {'base_model': base})}---\n\n" if licence else ""
    write_atomic(folder / CARD, head + "\n".join(lines) + "\n")


def note(found: Artefact, proof: dict[str, Any], name: str) -> None:
    """Adds the merge to the record of the adapter's run, if there is one."""
    run = run_of(found)
    if run is None:
        return
    record, merged = read_record(run), proof["merged"]
    part = MergePart(
        name=name,
        dtype=proof["dtype"],
        positions=proof["positions"],
        largest_logit_difference=merged["largest_logit_difference"],
        mean_kl=merged["mean_kl"],
        top1_agreement=merged["top1_agreement"],
        perplexity=proof["perplexity"],
        same_texts=proof["same_texts"],
        texts=len(proof["texts"]),
    )
    write_record(run, record.updated(merges=(*record.merges, part)))


def _words(proof: dict[str, Any]) -> list[str]:
    merged, perplexity = proof["merged"], proof["perplexity"]
    lines = [
        f"Compared with the adapter on its base in a fresh process, on {proof['prompts']} prompts ({proof['rows']}), "
        f"{proof['positions']:,} positions, in {proof['dtype']}:",
        "",
        f"- largest difference of a logit: {merged['largest_logit_difference']:.3g} "
        f"(the largest logit is {merged['largest_logit']:.3g})",
        f"- mean KL divergence: {merged['mean_kl']:.2g} nats; the likeliest token is the same at "
        f"{merged['top1_agreement']:.1%} of the positions",
        f"- perplexity: base {perplexity['base']:.4g}, adapter {perplexity['adapter']:.4g}, "
        f"merged {perplexity['merged']:.4g}",
        f"- greedy texts that are the same: {proof['same_texts']} of {len(proof['texts'])}",
    ]
    if "as_trained" in perplexity:
        lines.append(f"- perplexity on the quantized base that it learnt on: {perplexity['as_trained']:.4g}")
    return lines
