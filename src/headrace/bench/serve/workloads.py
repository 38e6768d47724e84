"""What clients ask: conversations of seeded random words, in the shapes that real traffic has.

In: a workload and a seed. Out: an endless line of conversations. Thread: any. Next: `load.py`.

Every prompt begins with words of its own, so that no prefix cache helps by accident; only
`shared-prefix` and `multi-turn` repeat what was said, on purpose.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

_TEXT = """
about after again air all along also animal answer any around ask away back because been before
began being below between big book both boy build call came can car carry change children city
close cold come could country cut day did different does door down draw each early earth eat end
enough even every example eye face family far father feet few find first follow food for form found
four friend from gave get girl give good great group grow half hand hard has have head hear help her
here high him his home horse hour house how hundred idea if important it just keep kind king know
land large last late learn leave left letter life light like line list listen little live long look
low made make man many map mark may mean men might mile miss money more morning most mother mountain
move much music must name near need never new next night north not note notice now number numeral
object off often old once one only open order other our out over own page paper part pass pattern
people picture piece place plain plan plane plant play point port pose press problem product pull
question quick rain ran reach read real red remember right river road rock room round rule run same
saw say school science sea second see seem self sentence serve set several shape she ship should
show side simple since sing sit sky sleep slow small snow some song soon south spell stand star
start state stay step still stood stop story street strong study such sun sure surface table take
talk teach tell ten than that their them then there these thing think this those thought thousand
three through time together told too took top toward town travel tree true try turn two under unit
until usual very voice vowel wait walk want war warm watch water way week well went were west what
wheel when where which while white who whole why will wind with wonder wood word work world would
write year young
"""
_WORDS = _TEXT.split()
_MARK_LETTERS = "bcdfghjklmnpqrstvwz"
_MOST_WORDS = 8


@dataclass(frozen=True, slots=True)
class Length:
    """How long something is: `median`, and spread around it lognormally where `sigma` is not 0."""

    median: int
    sigma: float = 0.0

    def draw(self, source: random.Random) -> int:
        """At least 1, and at most eight times the median."""
        if not self.sigma:
            return self.median
        drawn = self.median * math.exp(source.gauss(0.0, self.sigma))
        return min(max(1, round(drawn)), _MOST_WORDS * self.median)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question, and the most tokens of its answer."""

    question: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one client asks, one turn after the other; `system` comes before, unless empty."""

    system: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of traffic. Lengths are words of a prompt and tokens of an answer."""

    name: str
    about: str
    prompt_words: Length
    output_tokens: Length
    num_shared_words: int = 0
    """Of a system message that all conversations share."""
    num_own_words: int = 0
    """Of a system message of each conversation's own."""
    num_turns: int = 1

    def conversations(self, seed: int) -> Iterator[Conversation]:
        """Endless; the same for the same seed."""
        source = random.Random(f"headrace/{self.name}/{seed}")
        shared = _words(source, self.num_shared_words)
        while True:
            own = _words(source, self.num_own_words)
            system = shared or own
            yield Conversation(system, tuple(self._turn(source) for _ in range(self.num_turns)))

    def _turn(self, source: random.Random) -> Turn:
        question = _words(source, self.prompt_words.draw(source))
        return Turn(question, self.output_tokens.draw(source))


def _words(source: random.Random, num_words: int) -> str:
    """`num_words` words, the first of them most likely never said before."""
    if not num_words:
        return ""
    mark = "".join(source.choices(_MARK_LETTERS, k=6))
    return " ".join([mark, *source.choices(_WORDS, k=num_words - 1)])


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("fixed", "every prompt and answer of one length", Length(128), Length(64)),
        Workload(
            "chat",
            "lengths as people write them, lognormally spread",
            Length(48, 0.9),
            Length(96, 0.6),
        ),
        Workload("long-context", "long documents, short answers", Length(2000, 0.2), Length(64)),
        Workload(
            "shared-prefix",
            "one long system message for all, short questions",
            Length(32),
            Length(64),
            num_shared_words=512,
        ),
        Workload(
            "multi-turn",
            "conversations of 5 turns, each with all that was said before",
            Length(32, 0.5),
            Length(64, 0.4),
            num_own_words=64,
            num_turns=5,
        ),
    )
}
