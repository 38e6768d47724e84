"""A synthetic conversation: small talk, facts planted in it, questions about them in the end.

Each turn has an aside: a fact, or some words about nothing that are about as long. So turns differ
little in length, and what percentiles over them show is the strategy, not the question.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_OPENINGS = ("By the way,", "Just so you know,", "One thing to remember:", "Also,", "Note that")
_PLANTED = (
    # (what is said, the word that must be remembered, what is asked)
    ("my sister is called {name}", "What is my sister called?"),
    ("the code of my locker is {number}", "What is the code of my locker?"),
    ("our train leaves from platform {number}", "From which platform does our train leave?"),
    ("my dog is called {name}", "What is my dog called?"),
    ("the meeting is in the room {name}", "In which room is the meeting?"),
    ("I was born in {name}", "Where was I born?"),
    ("the budget is {number} euros", "What is the budget?"),
    ("my doctor is called {name}", "What is my doctor called?"),
    ("the ship is named {name}", "What is the ship named?"),
    ("our flat has the number {number}", "Which number has our flat?"),
    ("the project is due on day {number}", "On which day is the project due?"),
    ("my favourite river is the {name}", "What is my favourite river?"),
)
_TOPICS = (
    "the weather in the mountains",
    "how bread is baked",
    "old bridges over small rivers",
    "why leaves turn red",
    "learning to play the cello",
    "the history of water mills",
    "growing tomatoes on a balcony",
    "trains through the night",
)
_SAID = (
    "There is a lot to say about {topic}, and people have thought about it for a long time.",
    "What matters most with {topic} is patience, and a good look at how others have done it.",
    "Some find {topic} dull at first, but it becomes more interesting the longer one looks.",
    "If you want to know more about {topic}, begin with something small and go on from there.",
)
_ASIDES = (
    "it has been rather windy here since this morning",
    "the neighbours have painted their fence again",
    "nobody seems to be in a hurry today",
    "there was hardly any bread left at the shop",
    "the kettle takes longer than it used to",
    "our street is quiet at this time of day",
)
_SYLLABLES = ("ka", "ro", "mi", "ve", "lu", "ta", "sen", "dor", "bel", "ni", "fa", "zo")


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that was said once."""

    turn: int
    key: str
    """The word without which nobody knows it."""
    question: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn."""

    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation, and what was planted in it."""

    turns: tuple[Exchange, ...]
    facts: tuple[Fact, ...]


def talk(num_turns: int, seed: int = 1, *, num_sentences: int = 2) -> Talk:
    """`num_turns` turns of about 75 tokens, more with more sentences. Facts are planted in the
    first two thirds of them."""
    chance = random.Random(seed)
    planted = _planted(num_turns, chance)
    turns, facts = [], []
    for index in range(num_turns):
        topic = chance.choice(_TOPICS)
        aside = chance.choice(_ASIDES)
        if index in planted:
            aside, key, question = planted[index]
            facts.append(Fact(index, key, question))
        asked = f"Tell me something about {topic}, please. {chance.choice(_OPENINGS)} {aside}."
        said = " ".join(chance.choice(_SAID).format(topic=topic) for _ in range(num_sentences))
        turns.append(Exchange(asked, said))
    return Talk(tuple(turns), tuple(facts))


def _planted(num_turns: int, chance: random.Random) -> dict[int, tuple[str, str, str]]:
    """By turn: what is told, its key word, and the question for it."""
    num_facts = min(len(_PLANTED), max(1, num_turns // 4))
    places = sorted(chance.sample(range(max(num_facts, num_turns * 2 // 3)), num_facts))
    facts = {}
    for place, (form, question) in zip(places, _PLANTED, strict=False):
        key = _name(chance) if "{name}" in form else str(chance.randrange(1000, 10_000))
        facts[place] = (form.format(name=key, number=key), key, question)
    return facts


def _name(chance: random.Random) -> str:
    return "".join(chance.choices(_SYLLABLES, k=3)).capitalize()
