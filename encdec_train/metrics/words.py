"""Words and n-grams, as the metrics that are counted here (and not by a library) see them."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

Ngram = tuple[str, ...]


def count_ngrams(words: Sequence[str], order: int) -> Counter[Ngram]:
    """Return how often each sequence of `order` words occurs; nothing where there are fewer words."""
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


@cache
def words_13a() -> Callable[[str], list[str]]:
    """Return the function that splits a text as sacreBLEU's 13a tokenizer does (mteval-v13a's rules)."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a  # here, because knowing a metric's name must stay cheap

    tokenizer = Tokenizer13a()
    return lambda text: tokenizer(text).split()
