"""How fast we are: passes and seconds beside other tools and beside raw model calls; written to docs/performance.md.

Every section is a module with `measure(quick)`, which returns what JSON can hold, and `section(found)`, which returns
its lines of the page. `python -m benchmarks` measures all of them, `python -m benchmarks NAME …` only some.
"""
