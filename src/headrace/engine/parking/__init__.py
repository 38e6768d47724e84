"""Banks of conversations on disk, and back: what was said yesterday is warm today.

parking.py   the engine thread's side: when what goes where
parked.py    which banks are on disk
away.py      after a turn: copied out, one bank at a time
back.py      before a turn: read, and put into its sequence's own banks
files.py     the files, on threads of their own
"""
