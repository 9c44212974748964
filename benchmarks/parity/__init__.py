"""Verdicts against the authors' AutoAttack: trained models, three norms, three seeds a side.

`python -m benchmarks.parity` computes what is missing (resumable; hours on two cores) and writes docs/parity.md; with
`--check` it says whether the committed numbers meet the two criteria, with `--page` it only writes the page anew. The
verdicts of all samples are kept in benchmarks/results/parity.json.
"""
