"""The words of the demo: who acts, what is done to what, and the states and events that relate two facts.

Every list is part of the corpus: `demo.VERSION` goes up when one of them changes. Words hold no apostrophe and no
hyphen, so that a BERT tokenizer's pieces join to the same text again.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Verb(NamedTuple):
    """An action verb: four forms, and the kinds of things that it applies to."""

    base: str
    past: str
    participle: str
    gerund: str
    kinds: tuple[str, ...]


class Noun(NamedTuple):
    """A thing; `adjectives` fit its kind."""

    word: str
    kind: str
    plural: bool


class Person(NamedTuple):
    """Somebody who acts, as named inside a sentence (`Maria`, `the twins`), and the pronoun for them."""

    name: str
    pronoun: str

    @property
    def plural(self) -> bool:
        """Whether the verb is in the plural."""
        return self.pronoun == "they"


@dataclass(frozen=True)
class Vocabulary:
    """The people and verbs that a split may use."""

    people: tuple[Person, ...]
    verbs: tuple[Verb, ...]


def _people(women: str, men: str, groups: str) -> tuple[Person, ...]:
    return (
        *(Person(name, "she") for name in women.split()),
        *(Person(name, "he") for name in men.split()),
        *(Person(f"the {name}", "they") for name in groups.split()),
    )


def _verbs(table: str) -> tuple[Verb, ...]:
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(Verb(base, past, participle, gerund, tuple(kinds)) for base, past, participle, gerund, *kinds in rows)


def _nouns(table: str) -> tuple[Noun, ...]:
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(Noun(word.strip("*"), kind, word.endswith("*")) for kind, *words in rows for word in words)


def _states(table: str) -> dict[str, tuple[str, ...]]:
    """Read `state: kinds` rows as the states of each kind."""
    rows = [line.strip().split(": ") for line in table.strip().splitlines()]
    kinds = sorted({kind for _, fitting in rows for kind in fitting.split()})
    return {kind: tuple(state for state, fitting in rows if kind in fitting.split()) for kind in kinds}


FINE_TUNED = Vocabulary(
    people=_people(
        women="""
        Agnes Alba Alice Alma Amanda Amelia Andrea Angela Anita Anna Astrid Aurora Bella Berta Bianca Brenda Bridget
        Camila Carla Carmen Carol Catherine Cecilia Celia Charlotte Clara Claudia Cora Daisy Daphne Denise Diana Dora
        Doris Edith Elena Elisa Elsa Emily Emma Erika Esther Eva Fiona Flora Frida Gemma Gerda Gina Grace Greta Hanna
        Hazel Heidi Helen Hilda Ines Irene Iris Isabel Ivy Jane Janet Joan Judith Julia Karin Katya Laura Leila Lena
        Lily Linda Lisa Lola Lucy Luisa Lydia Magda Maria Marta Mary Matilda Mia Milena Miriam Molly Monica Nadia
        Nancy Nina Nora Olga Olivia Paula Petra Rachel Rebecca Rita Rosa Ruth Sarah Sonia Sophie Susan Sylvia Tanya
        Teresa Ursula Valerie Vera Wanda Wilma Yvonne Zoe
        """,
        men="""
        Aaron Adam Albert Alan Alex Alfred Andrew Anton Arnold Axel Ben Bernard Bert Bill Bob Boris Brian Bruno Carl
        Carlos Cedric Charles Chris Claude Colin Daniel David Dennis Diego Dirk Donald Edgar Edward Egon Eli Emil Eric
        Ernest Ethan Fabian Felix Finn Frank Fred Gabriel George Gerald Gordon Gregor Gustav Harold Harry Hector Henry
        Herman Hugo Ian Igor Isaac Ivan Jack Jacob James Jan Jens Joel John Jonas Joseph Julian Karl Kevin Kurt Lars
        Leo Leon Louis Luke Marco Mario Mark Martin Max Michael Miguel Moritz Neil Nick Nils Noah Norman Oliver Oscar
        Otto Owen Pablo Patrick Paul Pedro Peter Philip Ralph Ramon Richard Robert Roman Rudolf Sam Sergei Simon
        Stefan Steven Sven Theo Thomas Tim Tobias Tom Toni Victor Vincent Walter Werner
        """,
        groups="twins neighbours students sailors farmers children sisters brothers tourists soldiers",
    ),
    verbs=_verbs(
        """
        repair repaired repaired repairing vehicle building furniture machine instrument
        paint painted painted painting vehicle building furniture
        clean cleaned cleaned cleaning vehicle building furniture machine dish
        sell sold sold selling vehicle building furniture machine instrument art animal
        buy bought bought buying vehicle building furniture machine instrument clothes animal
        rent rented rented renting vehicle building machine instrument
        borrow borrowed borrowed borrowing vehicle machine instrument writing clothes
        find found found finding machine instrument art writing animal clothes
        hide hid hidden hiding instrument art writing clothes
        steal stole stolen stealing vehicle machine instrument art food
        keep kept kept keeping instrument art writing animal dish
        write wrote written writing writing
        read read read reading writing
        sign signed signed signing writing art
        copy copied copied copying writing art
        burn burned burned burning writing food furniture
        bake baked baked baking food
        cook cooked cooked cooking food
        serve served served serving food
        taste tasted tasted tasting food
        eat ate eaten eating food
        sew sewed sewn sewing clothes
        knit knitted knitted knitting clothes
        wash washed washed washing clothes vehicle animal dish
        iron ironed ironed ironing clothes
        fold folded folded folding clothes writing
        mend mended mended mending clothes furniture
        wear wore worn wearing clothes
        plant planted planted planting plant
        water watered watered watering plant
        cut cut cut cutting plant food clothes
        trim trimmed trimmed trimming plant
        feed fed fed feeding animal
        train trained trained training animal
        brush brushed brushed brushing animal clothes
        catch caught caught catching animal
        draw drew drawn drawing animal building plant
        break broke broken breaking dish machine instrument
        choose chose chosen choosing clothes instrument furniture art food
        carry carried carried carrying furniture instrument art animal dish
        move moved moved moving furniture vehicle machine plant
        polish polished polished polishing vehicle furniture instrument dish
        photograph photographed photographed photographing building art plant animal
        build built built building building furniture vehicle
        inspect inspected inspected inspecting building vehicle machine writing plant
        measure measured measured measuring building furniture plant clothes
        damage damaged damaged damaging vehicle building furniture machine instrument
        show showed shown showing art writing machine clothes
        test tested tested testing vehicle machine instrument food
        """
    ),
)

UNSEEN = Vocabulary(
    people=_people(
        women="""
        Barbara Beatrix Claire Dolores Eleanor Fatima Gloria Ingrid Josephine Klara Liv Margaret Naomi Penelope Ramona
        Stella Tamara Viola
        """,
        men="""
        Arthur Benedict Conrad Dmitri Ferdinand Gilbert Hassan Jasper Kaspar Lukas Matteo Nathan Quentin Rafael Samuel
        Tristan Ulrich Xavier
        """,
        groups="nurses actors",
    ),
    verbs=_verbs(
        """
        admire admired admired admiring building art plant animal vehicle
        drive drove driven driving vehicle
        weigh weighed weighed weighing food animal machine
        tear tore torn tearing clothes writing
        lose lost lost losing clothes writing instrument animal
        wrap wrapped wrapped wrapping dish art food instrument
        sketch sketched sketched sketching building plant animal furniture
        hang hung hung hanging clothes art
        forget forgot forgotten forgetting writing instrument food clothes
        improve improved improved improving machine building writing
        """
    ),
)

EVERYTHING = Vocabulary(FINE_TUNED.people + UNSEEN.people, FINE_TUNED.verbs + UNSEEN.verbs)

NOUNS = _nouns(
    """
    vehicle boat van bicycle tractor wagon canoe truck carriage
    building barn cottage shed chapel mill fence bridge tower stables*
    furniture table cupboard bench desk sofa mirror chairs* shelves*
    machine clock radio pump camera engine printer lamps*
    instrument piano violin guitar flute trumpet harp drums*
    art portrait statue vase mural mask carvings*
    writing letter poem report map speech novel postcards* invitations*
    food soup cake pie bread stew cheese pancakes* dumplings*
    clothes coat dress blanket jacket scarf gloves* shirts* curtains*
    plant hedge orchard lawn roses* tulips* vines*
    animal horse donkey pony puppy parrot goats* hens*
    dish kettle teapot bowl plates* cups*
    """
)

ADJECTIVES = {
    "vehicle": "old red rusty small heavy fast",
    "building": "old wooden empty white small tall",
    "furniture": "old wooden heavy broken green simple",
    "machine": "old strange noisy small expensive modern",
    "instrument": "old expensive black heavy strange rare",
    "art": "famous strange beautiful old expensive rare",
    "writing": "long short secret strange old funny",
    "food": "fresh sweet huge simple cold delicious",
    "clothes": "blue warm torn heavy white elegant",
    "plant": "tall wild beautiful young dry huge",
    "animal": "young white hungry brown wild gentle",
    "dish": "blue broken heavy old white silver",
}

# "because": what moves somebody to act; "{was}" agrees with the subject.
REASONS = (
    "needed the money", "had promised to help", "had made a bet", "{was} bored", "expected guests", "loved a challenge",
    "wanted a change", "had nothing else to do", "{was} in a good mood", "hoped to win a prize", "had a free day",
    "liked to be useful",
)  # fmt: skip
# "although": what keeps somebody from acting.
OBSTACLES = (
    "{was} very tired", "had no experience", "had a bad cold", "had very little time", "{was} afraid of failing",
    "had slept badly", "had no help", "had a broken arm", "{was} late for work", "hated this kind of work",
    "knew nothing about it", "{was} almost blind",
)  # fmt: skip
# What is said of a thing fits some kinds of things; "{was}" agrees with it. "because":
CAUSES = _states(
    """
    {was} in the way: vehicle furniture machine instrument art plant animal
    had been neglected for years: vehicle building machine instrument plant animal
    {was} covered in dust: vehicle building furniture machine instrument art writing dish
    {was} badly needed: vehicle building machine writing food clothes
    {was} a gift from an old friend: furniture machine instrument art clothes animal dish
    had belonged to a king: furniture instrument art writing clothes dish
    {was} too good to waste: food plant clothes dish
    had been promised to a museum: vehicle machine art writing instrument
    smelled of smoke: building furniture food clothes
    had survived the winter: vehicle building plant animal
    """
)
# "even though":
DRAWBACKS = _states(
    """
    {was} worth very little: vehicle building furniture machine instrument art dish
    {was} not quite finished: building art writing clothes food
    belonged to someone else: vehicle building furniture machine instrument art clothes animal dish plant
    had brought bad luck before: vehicle machine instrument art writing clothes animal
    {was} full of mistakes: writing art
    had disappointed everybody: vehicle machine art writing food animal instrument
    {was} far too big: building furniture plant clothes animal dish
    looked dangerous: vehicle building machine animal food plant
    had nearly been forgotten: furniture instrument writing food plant
    """
)
# "so": what somebody unnamed does next with the thing; the object follows.
RESULTS = _states(
    """
    nobody could use: vehicle building furniture machine instrument dish
    nobody recognized: vehicle building furniture art clothes animal
    everybody wanted to see: building art writing plant animal
    everybody talked about: vehicle building art writing food clothes
    nobody asked for: machine furniture writing food dish
    everybody praised: art writing food clothes plant instrument
    nobody could reach: vehicle building plant animal dish
    everybody noticed: vehicle building machine clothes furniture
    everybody wanted to buy: vehicle furniture instrument art animal clothes food
    """
)
# "which":
ORIGINS = _states(
    """
    came from Portugal: vehicle furniture machine instrument art food clothes plant animal dish
    came from a small island: vehicle instrument art writing food animal plant
    had cost a fortune: vehicle building furniture machine instrument art clothes animal dish
    had won a prize: vehicle art writing food plant animal
    dated from the war: vehicle building furniture machine writing
    had appeared in a film: vehicle building art clothes animal
    came from the market: food clothes plant animal dish
    had been a bargain: vehicle furniture machine instrument clothes dish
    """
)
# "who", said of a person in the present: singular and plural verb, and the rest.
PRESENT = (
    ("lives", "live", "in Lisbon"), ("lives", "live", "near the harbour"), ("lives", "live", "in the mountains"),
    ("comes", "come", "from Norway"), ("comes", "come", "from a large family"), ("works", "work", "at the hospital"),
    ("works", "work", "for the railway"), ("speaks", "speak", "four languages"), ("owns", "own", "a bakery"),
    ("plays", "play", "in an orchestra"), ("teaches", "teach", "at the village school"),
    ("collects", "collect", "old coins"),
)  # fmt: skip
# "when" after an action in progress, "as soon as" before an immediate one.
EVENTS = (
    "the phone rang", "the lights went out", "a storm broke", "the bell rang", "the dog barked", "snow began to fall",
    "the guests arrived", "the music stopped", "the sun came out", "a letter arrived", "the train left",
    "the roof collapsed",
)  # fmt: skip
# In order: "before" and "after" follow from the place in the list.
WEEKDAYS = tuple(f"on {day}" for day in ("Monday", "Wednesday", "Friday", "Sunday"))
DAY_TIMES = ("at dawn", "at noon", "in the evening", "at midnight")
