"""Short stories of simple words, in the manner of TinyStories, by a seeded grammar: what the CPU can learn in minutes.

They are not TinyStories: no model wrote them. A story has a child, an animal or a grown-up, a thing, a place, a
trouble, its end and a lesson; names, pronouns and things stay the same through it. Four to six phrasings a sentence.

Example::

    text = stories(4_000_000)   # the same bytes every time
"""

from __future__ import annotations

import random
from collections.abc import Sequence

END = "\n\n"


def _listed(text: str) -> list[str]:
    return text.split("|")


GIRLS = _listed("Lily|Mia|Anna|Sue|Ella|Zoe|Nora|Amy|Lucy|Rose|Tina|Jane|Emma|Ivy")
BOYS = _listed("Tom|Ben|Max|Tim|Sam|Jack|Leo|Finn|Bob|Dan|Nick|Hugo|Paul|Joe")
CHILDREN = (*((name, "she", "her", "girl") for name in GIRLS), *((name, "he", "his", "boy") for name in BOYS))
FRIENDS = _listed("dog|cat|bird|frog|rabbit|duck|mouse|pony|bear|turtle|squirrel|goat|fox|hen")
NAMES = _listed("Spot|Fluffy|Bella|Coco|Buddy|Daisy|Max|Pip|Ruby|Teddy|Sunny|Nibbles|Whiskers|Patch")
GROWN_UPS = _listed("mom|dad|grandma|grandpa|teacher|aunt|uncle|neighbor")
THINGS = _listed(
    "ball|kite|doll|boat|drum|hat|book|cup|box|car|train|bell|blanket|balloon|flute|lamp|basket|crown|shell"
)
LOOKS = _listed("red|blue|green|yellow|big|small|shiny|old|new|soft|round|pretty|tiny|striped|golden")
PLACES = _listed(
    "in the park|by the river|in the garden|at the beach|in the forest|on the hill|in the kitchen|in the yard|"
    "near the old tree|by the pond|at the farm|in the attic|on the playground|behind the house"
)
WEATHER = _listed("sunny|rainy|windy|warm|cold|snowy|bright|cloudy|quiet")
MOODS = _listed("happy|sad|scared|proud|tired|curious|excited|angry|lonely|surprised|worried|brave")
DOINGS = _listed("play|run|sing|jump|dance|draw|read|climb|swim|dig|paint|build|hide|explore")
FOODS = _listed("apples|cookies|cake|soup|berries|bread|honey|carrots|cheese|pancakes|nuts|pears")
LESSONS = _listed(
    "share what you have|be kind to everyone|always tell the truth|ask for help|never give up|listen to others|"
    "look before you jump|say sorry when you are wrong|be careful with other people's things|wait for your turn"
)

OPENINGS = (
    "Once upon a time, there was a little {kind} named {name}.",
    "One {weather} day, a little {kind} named {name} went out to {doing}.",
    "{name} was a {mood} little {kind} who liked to {doing}.",
    "There was once a {kind} called {name}, and {she} lived {near}.",
)
POSSESSIONS = (
    "{She} had a {look} {thing}, and {she} loved it very much.",
    "{Her} {adult} gave {name} a {look} {thing}.",
    "Every day {she} took {her} {look} {thing} and went to {doing} {place}.",
    "{She} found a {look} {thing} {place}.",
)
MEETINGS = (
    "{place_up}, {she} met a {look2} {animal} named {pet}.",
    "{Her} best friend was a {animal} named {pet}.",
    'A {animal} came by. "Hello, my name is {pet}," said the {animal}.',
    "{name} and {pet} the {animal} liked to {doing2} together.",
)
TROUBLES = (
    "But then the {thing} fell into a hole, and {name} could not reach it.",
    "Suddenly the wind took the {thing} away, and {name} began to cry.",
    "But {pet} took the {thing} and ran off. {name} was very {mood2}.",
    "{name} dropped the {thing}, and it broke. {She} felt {mood2}.",
    "When {she} looked around, the {thing} was gone. {name} looked and looked.",
    "{name} did not want to share the {thing}, and {pet} became {mood2}.",
)
WORDS = (
    '"Please help me," said {name}. "I want my {thing} back."',
    '"Do not be {mood2}," said {pet}. "We can look for it together."',
    '"What happened?" asked {her} {adult}. {name} told the whole story.',
    '"I am sorry," said {pet}. "I only wanted to {doing2} with you."',
    '"I have an idea," said the {animal}, and {she} listened.',
)
ENDS = (
    "They worked together, and soon the {thing} was as good as new.",
    "{pet} the {animal} found the {thing} {place}, and {name} was {mood3} again.",
    "So {name} gave the {thing} to {pet}, and they both began to {doing}.",
    "{Her} {adult} fixed the {thing}, and then they all ate {food}.",
    "{name} hugged {pet}, and they went home to eat {food}.",
)
LAST = (
    "From that day on, {name} knew that you should {lesson}.",
    "{name} learned to {lesson}. The end.",
    "And they lived happily, because they had learned to {lesson}.",
    "That night {name} fell asleep with the {thing}, and {she} was {mood3}.",
)
PARTS = (OPENINGS, POSSESSIONS, MEETINGS, TROUBLES, WORDS, WORDS, ENDS, LAST)


def stories(size: int, seed: int = 0) -> bytes:
    """About `size` bytes of ASCII, a whole number of stories, an empty line between two."""
    chance, parts, length = random.Random(seed), [], 0
    while length < size:
        parts.append(story(chance))
        length += len(parts[-1]) + len(END)
    return END.join(parts).encode("ascii")


def story(chance: random.Random) -> str:
    """One."""
    name, she, her, kind = chance.choice(CHILDREN)
    place = chance.choice(PLACES)
    mood, mood2, mood3 = chance.sample(MOODS, 3)
    doing, doing2 = chance.sample(DOINGS, 2)
    look, look2 = chance.sample(LOOKS, 2)
    words = {
        "name": name,
        "she": she,
        "her": her,
        "She": she.title(),
        "Her": her.title(),
        "kind": kind,
        "place": place,
        "place_up": place.capitalize(),
        "near": chance.choice(PLACES),
        "mood": mood,
        "mood2": mood2,
        "mood3": mood3,
        "doing": doing,
        "doing2": doing2,
        "look": look,
        "look2": look2,
        **_chosen(chance, weather=WEATHER, thing=THINGS, animal=FRIENDS, pet=NAMES, adult=GROWN_UPS),
        **_chosen(chance, food=FOODS, lesson=LESSONS),
    }
    said = [
        chance.choice(phrasings).format(**words)
        for phrasings in PARTS
        if phrasings is OPENINGS or chance.random() < 0.9
    ]
    return " ".join(said)


def _chosen(chance: random.Random, **kinds: Sequence[str]) -> dict[str, str]:
    return {kind: chance.choice(words) for kind, words in kinds.items()}
