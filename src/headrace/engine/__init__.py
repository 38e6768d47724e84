"""From a request to a stream of events. The files, in the order in which a request meets them:

request.py       what was asked, checked
intake.py        → tokens                                     (language.py, turns.py: how)
engine.py        the face: `Engine`; loading.py makes one from a file, shared.py keeps one
admission.py     now, later or never
mailbox.py       across, to the engine thread
loop.py          the heart: one step after the other
scheduler.py     which sequences get how many tokens          (waiting_line.py, cost.py)
kv_cache.py      which banks they use            (prefix_index.py, pins.py, shifting.py, memory.py)
parking/         which of them go to disk, and come back
sampler.py       logits → token                               (grammar.py: under which mask)
voice.py         token → text (text.py) → events
mailbox.py       back, to whoever listens
stream.py        where they listen
"""
