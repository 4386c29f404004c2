"""Stage 4: verified record blocks become typed rows, each with its time judged, or a named reject.

Frames in, frames out: nothing in this folder reads or writes a file, and nothing reads a clock.
"""
