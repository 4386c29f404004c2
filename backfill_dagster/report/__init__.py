"""The study's report: what was collected and what was not, as one page that can be printed and handed on.

`page.py` builds it. `numbers.py` reads the stored files, `figures/` draws what it found; `wording.py`, `markup.py` and
`drawing.py` hold what they share. The page names no account, and hosts only where many accounts live.
"""
