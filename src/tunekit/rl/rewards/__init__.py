"""Rewards of answers: one file each, found by listing this folder.

A plug-in has a ``Config``, a `_shared.block.RewardBlock` with ``kind: Literal[its name]``, and one of

- ``score(answers, config)``: a number an answer, or None where the reward does not apply;
- ``open(config, folder)``: what computes the same from answers, for rewards that read files; ``folder`` is where
  relative paths begin.

Beside them there may be ``check(config, folder)``, asked before any model is loaded in the place of ``open``,
``fault(reference, config)``, what keeps a row's right answer from being used, in words, else empty (what is special
about the row behind a colon: rows are counted by what stands before it), and
``default_name(config)``, what a block without a name is called, where that is not its kind.
"""
