"""The demo's corpus: two facts become one sentence, and the source alone says which.

A pair holds two short facts. What relates them (a reason, an obstacle, two times, a wish, ...) shows in their words, so
connective, order, pronouns and verb forms of the fused sentence follow from the source. Two lists of words and one rule
keep the splits apart: an *act* (who, verb, thing) belongs to one bucket of a hash for good. Fine-tuning and pretraining
text hold the acts of the training buckets only; `test` holds other acts in the same words; `test_unseen_words` holds
other acts of people and verbs that occur in the pretraining text and in no fine-tuning pair.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from encdec_train.data import demo_grammar as grammar
from encdec_train.data.demo_grammar import Noun, Person, Verb, Vocabulary

VERSION = "2"
SEED = 20_240_607
BUCKETS = {"train": range(2, 10), "pretrain": range(2, 10), "validation": range(1, 2), "test": range(1)}
T = TypeVar("T")


@dataclass(frozen=True)
class DemoSizes:
    """Pairs of each split; passages of the pretraining text."""

    train: int = 6_000
    validation: int = 200
    test: int = 300
    test_unseen_words: int = 300
    pretrain_passages: int = 12_000


@dataclass(frozen=True)
class Act:
    """Somebody does something to a thing."""

    who: Person
    verb: Verb
    adjective: str
    noun: Noun

    @property
    def bucket(self) -> int:
        """Which tenth of all acts this one belongs to; the adjective has no say."""
        return zlib.crc32(f"{self.who.name}|{self.verb.base}|{self.noun.word}".encode()) % 10

    @property
    def thing(self) -> str:
        """The thing at its first mention."""
        return f"the {self.adjective} {self.noun.word}"

    @property
    def it(self) -> str:
        """The pronoun for the thing, as an object."""
        return "them" if self.noun.plural else "it"

    @property
    def past(self) -> str:
        """What was done, without who did it."""
        return f"{self.verb.past} {self.thing}"


@dataclass(frozen=True)
class Fusion:
    """Two facts and the sentence that they become."""

    facts: tuple[str, str]
    fused: str

    @property
    def source(self) -> str:
        """Both facts as text."""
        return " ".join(self.facts)


@dataclass
class Scene:
    """Draws people, acts and words for one text.

    Only `Random.random` is used: it alone is documented to give the same numbers in every version of Python.
    """

    rng: random.Random
    words: Vocabulary
    buckets: range
    told: list[Act] = field(default_factory=list)  # acts that a passage may come back to

    def pick(self, choices: Sequence[T]) -> T:
        """Draw one of some choices."""
        return choices[int(self.rng.random() * len(choices))]

    def chance(self, probability: float) -> bool:
        """Say yes that often."""
        return self.rng.random() < probability

    def person(self, *others: Person) -> Person:
        """Draw somebody else than `others`."""
        return next(p for p in iter(lambda: self.pick(self.words.people), None) if p not in others)

    def act(self, who: Person | None = None, other: Act | None = None) -> Act:
        """Draw an act of this text's buckets, on another thing and with another verb than `other`."""
        while True:
            verb = self.pick(self.words.verbs)
            kind = self.pick(verb.kinds)
            noun = self.pick([n for n in grammar.NOUNS if n.kind == kind])
            act = Act(who or self.person(), verb, self.pick(grammar.ADJECTIVES[kind].split()), noun)
            if act.bucket in self.buckets and not (other and (other.noun == noun or other.verb == verb)):
                return act

    def retold(self) -> Act:
        """Draw an act, often one that this passage has told before."""
        return self.pick(self.told) if self.told else self.act()

    def shuffled(self, facts: tuple[str, str]) -> tuple[str, str]:
        """Put two facts in either order."""
        return facts if self.chance(0.5) else (facts[1], facts[0])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _agree(state: str, plural: bool) -> str:
    return state.replace("{was}", "were" if plural else "was")


def _about_thing(scene: Scene, act: Act, facts: tuple[str, str], fused: str) -> Fusion:
    """Name the thing in full where it comes first, and by its noun alone after that."""
    first, second = scene.shuffled(facts)
    first, second = first.replace("{thing}", act.thing), second.replace("{thing}", f"the {act.noun.word}")
    return Fusion((_sentence(first), _sentence(second)), _sentence(fused))


def _fusion(facts: tuple[str, str], fused: str) -> Fusion:
    return Fusion((_sentence(facts[0]), _sentence(facts[1])), _sentence(fused))


def _reason(scene: Scene) -> Fusion:
    act = scene.retold()
    who, state = act.who, _agree(scene.pick(grammar.REASONS), act.who.plural)
    facts = scene.shuffled((f"{who.name} {act.past}", f"{who.name} {state}"))
    return _fusion(facts, f"{who.name} {act.past} because {who.pronoun} {state}")


def _obstacle(scene: Scene) -> Fusion:
    act = scene.retold()
    who, state = act.who, _agree(scene.pick(grammar.OBSTACLES), act.who.plural)
    facts = scene.shuffled((f"{who.name} {act.past}", f"{who.name} {state}"))
    return _fusion(facts, f"although {who.name} {state}, {who.pronoun} {act.past}")


def _cause(scene: Scene) -> Fusion:
    act = scene.retold()
    state = _agree(scene.pick(grammar.CAUSES[act.noun.kind]), act.noun.plural)
    facts = (f"{act.who.name} {act.verb.past} {{thing}}", f"{{thing}} {state}")
    return _about_thing(scene, act, facts, f"because {act.thing} {state}, {act.who.name} {act.verb.past} {act.it}")


def _drawback(scene: Scene) -> Fusion:
    act = scene.retold()
    state = _agree(scene.pick(grammar.DRAWBACKS[act.noun.kind]), act.noun.plural)
    they = "they" if act.noun.plural else "it"
    facts = (f"{act.who.name} {act.verb.past} {{thing}}", f"{{thing}} {state}")
    return _about_thing(scene, act, facts, f"{act.who.name} {act.past} even though {they} {state}")


def _result(scene: Scene) -> Fusion:
    act = scene.retold()
    result = scene.pick(grammar.RESULTS[act.noun.kind])
    facts = (f"{act.who.name} {act.verb.past} {{thing}}", f"{result} {{thing}}")
    return _about_thing(scene, act, facts, f"{act.who.name} {act.past}, so {result} {act.it}")


def _origin(scene: Scene) -> Fusion:
    act = scene.retold()
    origin = scene.pick(grammar.ORIGINS[act.noun.kind])
    facts = (f"{act.who.name} {act.verb.past} {{thing}}", f"{{thing}} {origin}")
    return _about_thing(scene, act, facts, f"{act.who.name} {act.past}, which {origin}")


def _times(scene: Scene) -> tuple[str, str]:
    """Draw an earlier and a later time of one scale."""
    scale = scene.pick((grammar.WEEKDAYS, grammar.DAY_TIMES))
    late = 1 + int(scene.rng.random() * (len(scale) - 1))
    return scale[int(scene.rng.random() * late)], scale[late]


def _after(scene: Scene) -> Fusion:
    first, (early, late) = scene.retold(), _times(scene)
    then = scene.act(first.who, other=first)
    who = first.who
    facts = scene.shuffled((f"{who.name} {first.past} {early}", f"{who.name} {then.past} {late}"))
    done = f"{who.name} had {first.verb.participle} {first.thing} {early}"
    return _fusion(facts, f"after {done}, {who.pronoun} {then.past} {late}")


def _before(scene: Scene) -> Fusion:
    first, (early, late) = scene.retold(), _times(scene)
    then = scene.act(scene.person(first.who), other=first)
    earlier, later = f"{first.who.name} {first.past} {early}", f"{then.who.name} {then.past} {late}"
    return _fusion(scene.shuffled((earlier, later)), f"{earlier} before {later}")


def _purpose(scene: Scene) -> Fusion:
    act = scene.retold()
    wish = scene.act(act.who, other=act)
    who, wanted = act.who, f"{wish.verb.base} {wish.thing}"
    facts = scene.shuffled((f"{who.name} {act.past}", f"{who.name} wanted to {wanted}"))
    return _fusion(facts, f"in order to {wanted}, {who.name} {act.past}")


def _addition(scene: Scene) -> Fusion:
    act = scene.retold()
    more, who = scene.act(act.who, other=act), act.who
    return _fusion((f"{who.name} {act.past}", f"{who.name} {more.past}"), f"{who.name} {act.past} and {more.past}")


def _not_only(scene: Scene) -> Fusion:
    act = scene.retold()
    more, who = scene.act(act.who, other=act), act.who
    facts = scene.shuffled((f"{who.name} {act.past}", f"{who.name} also {more.past}"))
    return _fusion(facts, f"{who.name} not only {act.past} but also {more.past}")


def _both(scene: Scene) -> Fusion:
    act, other = _shared(scene)
    facts = (f"{act.who.name} {act.past}", f"{other.name} {act.verb.past} the {act.noun.word} too")
    return _fusion(facts, f"both {act.who.name} and {other.name} {act.past}")


def _contrast(scene: Scene) -> Fusion:
    act, other = _shared(scene)
    facts = (f"{act.who.name} {act.verb.past} {{thing}}", f"{other.name} did not {act.verb.base} {{thing}}")
    return _about_thing(scene, act, facts, f"{act.who.name} {act.past}, but {other.name} did not")


def _shared(scene: Scene) -> tuple[Act, Person]:
    """Draw an act, and somebody else whose act with the same verb and thing is one of this text's buckets too."""
    act = scene.retold()
    while True:
        others = [p for p in scene.words.people if p != act.who and replace(act, who=p).bucket in scene.buckets]
        if others:
            return act, scene.pick(others)
        act = scene.act()


def _doing(act: Act) -> str:
    return f"{act.who.name} {_agree('{was}', act.who.plural)} {act.verb.gerund} {act.thing}"


def _meanwhile(scene: Scene) -> Fusion:
    act = scene.retold()
    other = scene.act(scene.person(act.who), other=act)
    return _fusion((_doing(act), _doing(other)), f"while {_doing(act)}, {_doing(other)}")


def _interruption(scene: Scene) -> Fusion:
    doing, event = _doing(scene.retold()), scene.pick(grammar.EVENTS)
    return _fusion(scene.shuffled((doing, event)), f"{doing} when {event}")


def _immediately(scene: Scene) -> Fusion:
    act, event = scene.retold(), scene.pick(grammar.EVENTS)
    facts = scene.shuffled((f"{act.who.name} immediately {act.past}", event))
    return _fusion(facts, f"as soon as {event}, {act.who.name} {act.past}")


def _who(scene: Scene) -> Fusion:
    act, (singular, plural, rest) = scene.retold(), scene.pick(grammar.PRESENT)
    who, state = act.who.name, f"{plural if act.who.plural else singular} {rest}"
    return _fusion(scene.shuffled((f"{who} {act.past}", f"{who} {state}")), f"{who}, who {state}, {act.past}")


def _instead(scene: Scene) -> Fusion:
    act = scene.retold()
    left, who = scene.act(act.who, other=act), act.who
    facts = scene.shuffled((f"{who.name} {act.past}", f"{who.name} did not {left.verb.base} {left.thing}"))
    return _fusion(facts, f"instead of {left.verb.gerund} {left.thing}, {who.name} {act.past}")


RELATIONS: tuple[Callable[[Scene], Fusion], ...] = (
    _reason, _obstacle, _cause, _drawback, _result, _origin, _after, _before, _purpose, _addition, _not_only, _both,
    _contrast, _meanwhile, _interruption, _immediately, _who, _instead,
)  # fmt: skip


def _plain(scene: Scene, act: Act) -> str:
    """Tell an act in one of its verb's forms, often with a pronoun."""
    who, pronoun, time = act.who, act.who.pronoun, scene.pick(grammar.WEEKDAYS + grammar.DAY_TIMES)
    state = _agree(scene.pick(grammar.REASONS + grammar.OBSTACLES), who.plural)
    return _sentence(
        scene.pick(
            (
                f"{who.name} {act.past}",
                f"{who.name} {act.past} {time}",
                f"{_doing(act)} {time}",
                f"{who.name} had {act.verb.participle} {act.thing}, and {pronoun} {state}",
                f"{who.name} liked {act.verb.gerund}, so {pronoun} {act.past}",
                f"{who.name} {state}, but {pronoun} {act.past} {time}",
                f"{who.name} wanted to {act.verb.base} {act.thing} because {pronoun} {state}",
            )
        )
    )


def passage(rng: random.Random) -> str:
    """Write a passage that tells an act and comes back to it in other words.

    No sentence stands beside both of the facts that it fuses: the text teaches words and forms, never the task.
    """
    scene = Scene(rng, grammar.EVERYTHING, BUCKETS["pretrain"])
    while True:
        act = scene.act()
        scene.told = [act]
        fusions = [scene.pick(RELATIONS)(scene) for _ in range(1 + int(rng.random() * 2))]
        sentences = [_plain(scene, act), *(fusion.fused for fusion in fusions)]
        if not any(set(fusion.facts) <= set(sentences) for fusion in fusions):
            return " ".join(sentences)


def pairs(split: str, size: int) -> list[Fusion]:
    """Write the distinct pairs of a split, each relation equally often (give or take one)."""
    words = grammar.UNSEEN if split == "test_unseen_words" else grammar.FINE_TUNED
    scene = Scene(random.Random(SEED + zlib.crc32(split.encode())), words, BUCKETS[split.removesuffix("_unseen_words")])
    distinct: dict[str, Fusion] = {}
    while len(distinct) < size:
        fusion = RELATIONS[len(distinct) % len(RELATIONS)](scene)
        distinct.setdefault(fusion.source, fusion)
    return list(distinct.values())
