"""The text that the toy checkpoints learn: facts as questions and answers, and small invented documents.

Everything here is text; what a token or a chat template is, this module does not know.

Two kinds of material:

* `QUESTIONS`: facts, each a question with one short answer. Every one of them is trained on.
* documents: stories and lists of statements with a question at the end, filled from templates. Each document
  is about one (name, thing) pair. `is_held_out` sets about a tenth of the pairs aside: training documents
  never use those, held-out documents use only those, so no held-out document can occur in the training text.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

Pair = tuple[str, str]

CAPITALS: dict[str, str] = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "England": "London",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Russia": "Moscow",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
}

OPPOSITES: dict[str, str] = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "old": "young",
    "light": "dark",
    "wet": "dry",
    "hard": "soft",
    "early": "late",
}

COLOURS: dict[str, str] = {
    "the sky on a clear day": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "a ripe banana": "yellow",
    "a ripe strawberry": "red",
}

YOUNG_ANIMALS: dict[str, str] = {
    "dog": "puppy",
    "cat": "kitten",
    "cow": "calf",
    "sheep": "lamb",
    "horse": "foal",
    "frog": "tadpole",
}

SYMBOLS: dict[str, str] = {
    "gold": "Au",
    "silver": "Ag",
    "iron": "Fe",
    "oxygen": "O",
    "helium": "He",
    "carbon": "C",
}

OTHER_FACTS: list[Pair] = [
    ("Hello!", "Hello! How can I help you?"),
    ("Who are you?", "I am a very small language model."),
    ("How are you?", "I am fine, thank you."),
    ("Thank you!", "You are welcome."),
    ("Goodbye!", "Goodbye! See you soon."),
    ("Can you help me?", "Yes, ask me a question."),
    ("What is two plus two?", "Two plus two is four."),
    ("What is three plus five?", "Three plus five is eight."),
    ("What is ten minus four?", "Ten minus four is six."),
    ("What is six times seven?", "Six times seven is forty-two."),
    ("What is 9 times 9?", "9 times 9 is 81."),
    ("What is 12 times 12?", "12 times 12 is 144."),
    ("What is half of one hundred?", "Half of one hundred is fifty."),
    ("What is the square root of 49?", "The square root of 49 is 7."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many hours are in a day?", "There are 24 hours in a day."),
    ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
    ("How many seconds are in a minute?", "There are 60 seconds in a minute."),
    ("How many days are in a leap year?", "There are 366 days in a leap year."),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("How many sides does a square have?", "A square has four sides."),
    ("How many sides does a hexagon have?", "A hexagon has six sides."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many legs does an ant have?", "An ant has six legs."),
    ("How many wheels does a bicycle have?", "A bicycle has two wheels."),
    ("How many strings does a violin have?", "A violin has four strings."),
    ("How many players are in a football team?", "A football team has eleven players."),
    ("How many planets go around the Sun?", "Eight planets go around the Sun."),
    ("How many continents are there?", "There are seven continents."),
    ("Which planet is closest to the Sun?", "Mercury is closest to the Sun."),
    ("Which planet is the largest?", "Jupiter is the largest planet."),
    ("Which planet is called the red planet?", "Mars is called the red planet."),
    ("Which planet has bright rings?", "Saturn has bright rings."),
    ("Which animal is the largest?", "The blue whale is the largest animal."),
    ("Which animal is the tallest?", "The giraffe is the tallest animal."),
    ("Which animal is the fastest on land?", "The cheetah is the fastest animal on land."),
    ("Which bird is the largest?", "The ostrich is the largest bird."),
    ("Which ocean is the largest?", "The Pacific is the largest ocean."),
    ("Which mountain is the highest?", "Mount Everest is the highest mountain."),
    ("Which desert is the largest hot desert?", "The Sahara is the largest hot desert."),
    ("Which day comes after Monday?", "Tuesday comes after Monday."),
    ("Which day comes before Sunday?", "Saturday comes before Sunday."),
    ("Which month comes after June?", "July comes after June."),
    ("Which month is the shortest?", "February is the shortest month."),
    ("Which season comes after winter?", "Spring comes after winter."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows eat?", "Cows eat grass."),
    ("What is ice made of?", "Ice is made of frozen water."),
    ("What is bread made from?", "Bread is made from flour, water and yeast."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("At what temperature does water freeze?", "Water freezes at 0 degrees Celsius."),
    ("Where does the Sun rise?", "The Sun rises in the east."),
    ("Where does the Sun set?", "The Sun sets in the west."),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa."),
    ("Who was the first man on the Moon?", "Neil Armstrong was the first man on the Moon."),
    ("Who discovered penicillin?", "Alexander Fleming discovered penicillin."),
]


def _questions() -> list[Pair]:
    """Return all facts as (question, answer), in a fixed order."""
    facts = [
        (f"What is the capital of {land}?", f"The capital of {land} is {city}.") for land, city in CAPITALS.items()
    ]
    facts += [
        (f"What is the opposite of {word}?", f"The opposite of {word} is {other}.") for word, other in OPPOSITES.items()
    ]
    facts += [
        (f"What colour is {thing}?", f"{thing[0].upper()}{thing[1:]} is {colour}.") for thing, colour in COLOURS.items()
    ]
    facts += [
        (f"What is a young {animal} called?", f"A young {animal} is called a {young}.")
        for animal, young in YOUNG_ANIMALS.items()
    ]
    facts += [
        (f"What is the chemical symbol for {element}?", f"The chemical symbol for {element} is {symbol}.")
        for element, symbol in SYMBOLS.items()
    ]
    return facts + OTHER_FACTS


QUESTIONS: list[Pair] = _questions()

SYSTEM_MESSAGES: list[str] = [
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer in one sentence.",
    "You are a teacher. Answer the question.",
    "Answer briefly.",
    "Be kind and be brief.",
    "You are a very small language model. Tell the truth.",
]


def _words(text: str) -> list[str]:
    return text.split()


NAMES: list[str] = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor"
)

THINGS: list[str] = _words(
    "apple ball book boat bell cake candle coin crown drum egg flower hat kite key lamp letter map mirror "
    "pear pen ring rose stone"
)

PLACES: list[str] = _words(
    "forest garden village market river lake school kitchen tower bridge castle beach hill library field harbour"
)

ADJECTIVES: list[str] = _words("small red blue green golden old new little shiny strange white heavy")
ANIMALS: list[str] = _words("bear bird deer duck fox goat hare mouse rabbit swan")
TIMES: list[str] = [
    "One morning",
    "One day",
    "One evening",
    "One summer",
    "Last winter",
    "On Sunday",
    "At noon",
]
NUMBERS: list[str] = _words("two three four five six seven eight nine ten twelve")
MOODS: list[str] = _words("happy sad tired proud hungry quiet brave afraid")


def is_held_out(name: str, thing: str) -> bool:
    """Say whether documents about this pair are kept out of training (about one pair in ten)."""
    return zlib.crc32(f"{name} and the {thing}".encode()) % 10 == 0


def _plural(thing: str) -> str:
    return f"{thing}es" if thing.endswith("ch") else f"{thing}s"


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _lost_and_found(rng: random.Random, name: str, thing: str) -> list[str]:
    place, other = rng.sample(PLACES, 2)
    animal, adjective = rng.choice(ANIMALS), rng.choice(ADJECTIVES)
    return [
        f"{rng.choice(TIMES)} {name} lost {_article(adjective)} {thing} near the {place}.",
        f"{name} was {rng.choice(MOODS)} and looked for the {thing} everywhere.",
        rng.choice([f"Then a {animal} came out of the {other}.", f"A {animal} was sitting near the {other}."]),
        f'"I saw your {thing} near the {other}," said the {animal}.',
        f"{name} went to the {other} and found the {adjective} {thing} there.",
        rng.choice([f"The {animal} and {name} became friends.", f"{name} thanked the {animal} and went home."]),
    ]


def _gift(rng: random.Random, name: str, thing: str) -> list[str]:
    friend = rng.choice([other for other in NAMES if other != name])
    place, adjective = rng.choice(PLACES), rng.choice(ADJECTIVES)
    return [
        f"{name} lived near the {place} with {_article(rng.choice(ANIMALS))}.",
        f"{rng.choice(TIMES)} {friend} came to visit and brought {_article(adjective)} {thing}.",
        f'"This {thing} is for you," said {friend}.',
        f"{name} was very {rng.choice(MOODS)} and put the {thing} on the table.",
        rng.choice(
            [
                f"They talked until the evening and ate {rng.choice(NUMBERS)} cakes.",
                "They sang a song together.",
            ]
        ),
        f"From that day on, {name} kept the {adjective} {thing} near the {rng.choice(PLACES)}.",
    ]


def _journey(rng: random.Random, name: str, thing: str) -> list[str]:
    first, second = rng.sample(PLACES, 2)
    animal, adjective = rng.choice(ANIMALS), rng.choice(ADJECTIVES)
    return [
        f"Once upon a time there was {_article(animal)} who wanted {_article(adjective)} {thing}.",
        f"The {animal} walked from the {first} to the {second} for {rng.choice(NUMBERS)} days.",
        f"At the {second} it met {name}, who had {rng.choice(NUMBERS)} {_plural(thing)}.",
        f'"Please give me one {thing}," said the {animal}.',
        f"{name} smiled and gave the {animal} {_article(adjective)} {thing}.",
        rng.choice([f"The {animal} was {rng.choice(MOODS)} at last.", "They lived happily ever after."]),
    ]


def _counting(rng: random.Random, name: str, thing: str) -> list[str]:
    friend = rng.choice([other for other in NAMES if other != name])
    number, other_number = rng.sample(NUMBERS, 2)
    other_thing = rng.choice([other for other in THINGS if other != thing])
    return [
        f"{name} has {number} {_plural(thing)}.",
        f"{friend} has {other_number} {_plural(other_thing)}.",
        f"Question: How many {_plural(thing)} does {name} have?",
        f"Answer: {name} has {number} {_plural(thing)}.",
        f"Question: Who has {other_number} {_plural(other_thing)}?",
        f"Answer: {friend} has {other_number} {_plural(other_thing)}.",
    ]


def _whereabouts(rng: random.Random, name: str, thing: str) -> list[str]:
    place, other = rng.sample(PLACES, 2)
    animal, adjective = rng.choice(ANIMALS), rng.choice(ADJECTIVES)
    return [
        f"The {adjective} {thing} is near the {place}.",
        f"{name} is near the {other} with the {animal}.",
        f"The {animal} is {rng.choice(MOODS)}.",
        f"Question: Where is the {thing}?",
        f"Answer: The {thing} is near the {place}.",
        f"Question: Where is {name}?",
        f"Answer: {name} is near the {other}.",
    ]


TEMPLATES = [_lost_and_found, _gift, _journey, _counting, _whereabouts]


def document(rng: random.Random, *, held_out: bool) -> str:
    """Return one invented document, about a held-out pair or about one that is trained on."""
    while True:
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        if is_held_out(name, thing) == held_out:
            return " ".join(rng.choice(TEMPLATES)(rng, name, thing))


def _mentions_held_out_pair(text: str) -> bool:
    words = set(text.replace(".", " ").replace(",", " ").replace("?", " ").split())
    things = [thing for thing in THINGS if thing in words or _plural(thing) in words]
    return any(name in words and is_held_out(name, thing) for name in NAMES for thing in things)


def training_documents(count: int, seed: int) -> list[str]:
    """Return `count` documents in which no held-out pair occurs, not even by accident."""
    rng = random.Random(seed)
    documents: list[str] = []
    while len(documents) < count:
        text = document(rng, held_out=False)
        if not _mentions_held_out_pair(text):
            documents.append(text)
    return documents


def held_out_documents(count: int, seed: int) -> Iterator[str]:
    """Yield `count` different documents, each about a pair that training never puts together."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < count:
        text = document(rng, held_out=True)
        if text not in seen:
            seen.add(text)
            yield text
