"""Texts of a generated catalog: language-like, of realistic length, each a function of (seed, item, version).

A book of clauses is made once per seed: common words and invented ones in Zipf-like frequencies, put into
sentence patterns; nothing is copied from anywhere. Texts are made by drawing clauses and joining them, whole
columns at a time: no Python runs per item. Draws are hashes of (seed, item, version, place), not a generator's
stream, so an item's text depends on nothing else.

*Lengths.* Fitted on the 9,975 descriptions of the GoodBooks sample, counted with the WordPiece tokenizer of
all-MiniLM-L6-v2, special tokens included: mean 133.8, p1 94, p50 133, p99 181, p99.9 224, max 332. A gamma
distribution by maximum likelihood (shape 49.5, in units of the mean) gives p1 94, p50 133, p99 182 but a tail
that is too thin (p99.9 200), so 0.3 % of the texts come from 1.3 + an exponential of mean 0.3 instead; all are
cut at 2.5. What follows this is "{title}. {description}", in tokens as the clauses are estimated to have; that
estimate is right on average but not for every text, so the gamma that is drawn from is narrower (shape 56).

Short texts (`mean_tokens` below about 30) may repeat between items, as in real catalogs; from one version of
an item to the next the description always differs, and the title never.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

MIN_MEAN_TOKENS, SHORT_TEXT = 16, 40
"""Titles of catalogs with a lower mean than `SHORT_TEXT` have one part instead of two."""

GAMMA_SHAPE, TAIL_SHARE, TAIL_START, TAIL_MEAN, LONGEST = 56.0, 0.003, 1.3, 0.3, 2.5
LENGTH_BITS = 15
SPECIAL_TOKENS = 2
UNIT_TOKENS, JITTER = 10, 0.6
MIN_UNIT, MAX_UNIT = 3, 19
"""Tokens of a clause with its separator: texts are cut into units of about `UNIT_TOKENS`, moved by `JITTER`."""
SEPARATORS = {". ": 0.40, ", ": 0.38, " and ": 0.12, " while ": 0.06, "; ": 0.04, ".": 0.0}
STOP, FINAL = 0, len(SEPARATORS) - 1
CLAUSES_PER_LENGTH, DRAWS_PER_PATTERN, NUM_TITLE_PARTS = 2048, 6000, 4096
ZIPF_EXPONENT, ZIPF_SHIFT = 0.9, 4.0
TOKENS_OF_INVENTED = (0.444, 0.363)
"""WordPieces of an invented word: intercept, and slope per letter."""

INVENTED = {"N": (2500, 0.08), "A": (600, 0.05), "X": (3000, 0.35)}
"""Invented nouns, adjectives and names: how many, and their share of all uses; verbs and adverbs have none."""

GOLDEN, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
BOOK_STREAM = 1
HEAD_DRAW, TAIL_DRAW, OPENING_DRAW, TEXT_DRAW, LENGTH_DRAW, UNIT_DRAW = 1, 2, 3, 4, 5, 16

COMMON = {
    "N": """story adventure world life time journey heart family experience house secret friendship night truth history
        river discovery garden mystery generation winter civilization book power relationship woman man childhood king
        letter community mountain expedition war friend mother imagination father village university summer forest
        investigation shadow government stone dream voice battle revolution future past landscape love death promise
        stranger brother sister daughter character teacher student doctor soldier queen prince detective writer artist
        painter sailor farmer hunter captain technology ship sea storm ocean harbor bridge tower castle palace church
        school library hospital prison independence market street station train horse dog cat bird wolf dragon ghost
        witch wizard angel devil monster hero enemy leader rebel thief killer victim witness judge lawyer crime murder
        trial law justice freedom peace hope fear anger pain joy grief memory mind soul body hand face eye blood bone
        fire water wind rain snow ice sun moon star sky earth land field desert valley island lake beach coast border
        nation empire kingdom army crown throne sword knife gun key map clock mirror window room kitchen table chair
        lamp candle paper page song music dance game stage film camera picture portrait machine engine computer signal
        message café résumé bread wine coffee tea sugar salt apple orange tree flower rose leaf root seed grass corn
        gold silver iron glass wood cloth silk coat dress shoe ring gift box bag money debt price trade plan chance""",
    "A": """extraordinary young mysterious great dark international hidden remarkable lost quiet traditional strange
        ancient unexpected modern broken magnificent distant dangerous bright independent cold beautiful warm powerful
        invisible golden silent wild gentle passionate brave lonely famous forgotten contemporary simple rich poor
        supernatural strong weak sharp soft bitter sweet psychological ugly safe sacred royal human foreign local
        northern southern eastern western final first last early late black white red blue green grey brown pale heavy
        light fast slow cruel honest false clever mad calm angry happy sad proud humble noble common rare perfect empty
        full narrow wide high low open closed hard easy bold fierce loyal naïve""",
    "V": """discovers follows leaves remembers finds keeps guards knows meets transforms loves needs takes makes brings
        changes opens reveals closes breaks builds burns buys carries catches crosses draws drives enters escapes faces
        fights gives hears helps hides hunts joins kills leads learns loses marries moves offers owns paints plays
        reaches reads returns saves seeks sells sends serves shares shows sings starts stops teaches tells threatens
        touches turns uses visits wants watches wins writes""",
    "D": """eventually never always desperately slowly finally completely quickly often suddenly still immediately
        almost soon again once perhaps truly nearly""",
    "X": """Elizabeth Thomas Katherine Daniel Victoria Alexander Maria Edward Anna Christopher Laura Peter Margaret
        Simon Julia Benjamin Clara Nicholas Emma Robert Isabella Hugo Alice Sebastian Helen Martin Sofia Oliver""",
}
ONSETS = "b br c ch d dr f g gr h k l m n p qu r s st t th tr v w z"
NUCLEI = "a e i o u ai ea ei ia o a e"
CODAS = "- - - l n r s th nd m"
"""Syllables of invented words; `-` is no coda."""
CLAUSES = """{A} {N}|{N} and {N}|the {A} {N}|every {N} {V}|a {N} of {N}|{D} {A} and {A}|the {N} {V} {N}|{X} {V} the {N}
the {N} {V} a {N}|{X} {D} {V} every {N}|the {A} {N} {V} the {N}|in the {N} a {A} {N} {V} {X}|from {X} to the {A} {N}
the {N} of {X} {V} a {A} {N}|with {A} {N} and {A} {N} for every {N}|the {N} {D} {V} a {A} {N} for the {N}
a {N} that {V} the {N} and {D} {V} its {N}|when the {A} {N} of {N} {V} the {N} {X} {V} a {N}
under the {A} {N} of the {N} a {N} {D} {V} the {A} {N}|{X} is a {A} {N} who {V} the {N} of the {A} {N}
the {N} {V} a {A} {N} from {X} that {V} the {N} of the {N}|a {A} {N} {V} the {N} before the {N} of {X} {D} {V} it
between the {N} and the {A} {N} each {N} {V} a {N} for the {A} {N}
because the {N} of the {A} {N} {D} {V} the {N} a {A} {N} {V} a {A} {N}
it is the {A} {N} of a {N} who {V} the {N} and {D} {V} a {A} {N} from {N}"""
HEADS = "The {A} {N}|The {N}|{A} {N}|{N} and {N}|A {A} {N}|The {N} of {N}"
TAILS = " of {X}| of the {A} {N}| and the {N}| from {X}: a {A} {N}|: the {N} of {N}| in {N}| for the {A} {N}"


def make_texts(
    seed: int, mean_tokens: float, numbers: I64, versions: NDArray[np.uint32]
) -> tuple[pa.StringArray, pa.StringArray]:
    """Titles and descriptions.

    Args:
        seed: of the catalog.
        mean_tokens: mean WordPieces of "{title}. {description}", special tokens included.
        numbers: int64 (items,), at least one.
        versions: uint32 (items,), how often each item has changed.

    Returns:
        string (items,) and string (items,).
    """
    book = _phrase_book(seed)
    items = _mix(numbers.astype(np.uint64) + book.key)
    texts = _mix(_draw(items, TEXT_DRAW) + versions * np.uint64(GOLDEN))
    heads, tails = (_draw(items, draw) % np.uint64(NUM_TITLE_PARTS) for draw in (HEAD_DRAW, TAIL_DRAW))
    parts = np.stack([heads, tails + np.uint64(NUM_TITLE_PARTS)], axis=1).astype(np.int64)
    if mean_tokens < SHORT_TEXT:
        parts[:, 1] = 2 * NUM_TITLE_PARTS  # the empty tail
    lengths = _length_table(mean_tokens)[_draw(texts, LENGTH_DRAW) >> np.uint64(64 - LENGTH_BITS)]
    left = lengths - SPECIAL_TOKENS - 1 - book.title_tokens[parts].sum(axis=1)  # 1: the stop behind the title
    openings = (_draw(items, OPENING_DRAW) >> np.uint64(1)) + versions
    descriptions = _describe(book, texts, openings, np.maximum(left, MIN_UNIT))
    return _join(book.titles, parts.ravel(), np.arange(0, parts.size + 1, 2)), descriptions


@dataclass(frozen=True)
class _PhraseBook:
    """What texts are drawn from.

    Attributes:
        key: the seed's.
        clauses: every clause in every variant; place `variant * num_clauses + clause`, where
            variant is `capital * len(SEPARATORS) + separator`.
        starts, counts: int64 (MAX_UNIT + 1,), first clause and number of clauses of each length in tokens,
            separator included.
        titles: `NUM_TITLE_PARTS` heads, as many tails, and "".
        title_tokens: int64, tokens of these.
    """

    key: np.uint64
    clauses: pa.StringArray
    starts: I64
    counts: I64
    titles: pa.StringArray
    title_tokens: I64


def _describe(book: _PhraseBook, texts: U64, openings: U64, num_tokens: I64) -> pa.StringArray:
    """Descriptions of `num_tokens` tokens; two of an item differ if `openings` differ by 1.

    That holds because clauses have no punctuation and no equals, and the first is followed by a stop or a comma.
    """
    num_units = np.maximum(1, (num_tokens + UNIT_TOKENS // 2) // UNIT_TOKENS)
    bounds = np.concatenate([[0], np.cumsum(num_units)])
    first, last = bounds[:-1], bounds[1:] - 1
    text = np.repeat(np.arange(len(texts)), num_units)
    place = np.arange(bounds[-1]) - first[text]
    random = _mix(texts[text] + (place + UNIT_DRAW).astype(np.uint64) * np.uint64(GOLDEN))
    moved = place + JITTER * (_uniform(random, 0) - 0.5)
    begin = (num_tokens[text] * moved / num_units[text]).astype(np.int64)
    begin[first] = 0
    end = np.append(begin[1:], 0)
    end[last] = num_tokens
    length = np.clip(end - begin, MIN_UNIT, MAX_UNIT)
    separator = np.searchsorted(np.cumsum(list(SEPARATORS.values())), _uniform(random, 16), side="right")
    separator[first] %= 2
    separator[last] = FINAL
    capital = np.append(True, separator[:-1] == STOP)
    capital[first] = True
    choice = random >> np.uint64(32)
    choice[first] = openings
    clause = book.starts[length] + (choice % book.counts[length].astype(np.uint64)).astype(np.int64)
    num_clauses = int(book.counts.sum())
    return _join(book.clauses, (capital * len(SEPARATORS) + separator) * num_clauses + clause, bounds)


def _join(pieces: pa.StringArray, chosen: I64, bounds: I64) -> pa.StringArray:
    """Text `i` is the pieces `chosen[bounds[i] : bounds[i + 1]]` one after the other.

    `take` lays them so already: only the offsets in between are left out.
    """
    flat = pieces.take(pa.array(chosen))
    _, offsets, data = flat.buffers()
    kept = np.frombuffer(offsets, dtype=np.int32)[bounds]
    return pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(kept), data)


@lru_cache(maxsize=4)
def _length_table(mean_tokens: float) -> I64:
    """Lengths in tokens at `2 ** LENGTH_BITS` equal steps of probability (the module's docstring has the fit)."""
    num = 1 << LENGTH_BITS
    num_tail = round(TAIL_SHARE * num)
    steps = (np.arange(num - num_tail) + 0.5) / (num - num_tail)
    normal = np.array([NormalDist().inv_cdf(step) for step in steps])
    # Wilson and Hilferty's quantiles of the gamma distribution, 1931
    body = (1 - 1 / (9 * GAMMA_SHAPE) + normal / (3 * GAMMA_SHAPE**0.5)) ** 3
    tail = TAIL_START - TAIL_MEAN * np.log((np.arange(num_tail) + 0.5) / num_tail)
    lengths = np.concatenate([body, tail])
    return np.rint(np.minimum(lengths / lengths.mean(), LONGEST) * mean_tokens).astype(np.int64)


@lru_cache(maxsize=2)
def _phrase_book(seed: int) -> _PhraseBook:
    """The book of a seed."""
    rng = np.random.default_rng([seed, BOOK_STREAM])
    words = {kind: _make_words(kind, rng) for kind in "NAVDX"}
    clauses, tokens = _fill(CLAUSES.replace("\n", "|"), DRAWS_PER_PATTERN, words, rng)
    capital = _capital(clauses)
    _, distinct = np.unique(pc.dictionary_encode(capital).indices.to_numpy(), return_index=True)
    distinct = rng.permutation(distinct)
    units = np.rint(tokens[distinct]).astype(np.int64) + 1
    kept = [distinct[units == unit][:CLAUSES_PER_LENGTH] for unit in range(MIN_UNIT, MAX_UNIT + 1)]
    counts = np.array([0] * MIN_UNIT + [len(places) for places in kept])
    assert counts[MIN_UNIT:].min() > 1, "an opening needs another clause of the same length"
    order = pa.array(np.concatenate(kept))
    variants = [
        pc.binary_join_element_wise(form.take(order), separator, "")
        for form in (clauses, capital)
        for separator in SEPARATORS
    ]
    capitals = {kind: replace(one, texts=_capital(one.texts)) for kind, one in words.items()}
    titles = [_some(_fill(patterns, NUM_TITLE_PARTS, capitals, rng), rng) for patterns in (HEADS, TAILS)]
    return _PhraseBook(
        key=np.random.SeedSequence(seed).generate_state(1, np.uint64)[0],
        clauses=pa.concat_arrays(variants),
        starts=np.cumsum(counts) - counts,
        counts=counts,
        titles=pa.concat_arrays([texts for texts, _ in titles] + [pa.array([""])]),
        title_tokens=np.rint(np.concatenate([tokens for _, tokens in titles] + [[0]])).astype(np.int64),
    )


@dataclass(frozen=True)
class _Words:
    """Words of a kind, most frequent first; their tokens, and how frequent those up to each are, float64 (words,)."""

    texts: pa.StringArray
    tokens: NDArray[np.float64]
    cumulative: NDArray[np.float64]


def _make_words(kind: str, rng: np.random.Generator) -> _Words:
    """The common words of a kind, then the invented ones; both by Zipf's law."""
    common = COMMON[kind].split()
    num, share = INVENTED.get(kind, (0, 0.0))
    parts = [letters.replace("-", "").split(" ") for letters in (ONSETS, NUCLEI, CODAS)] * 3
    letters = [[part[place] for place in rng.integers(len(part), size=num)] for part in parts]
    syllables = rng.integers(2, 4, size=num)
    invented = ["".join(word[: 3 * count]) for word, count in zip(zip(*letters, strict=True), syllables, strict=True)]
    intercept, slope = TOKENS_OF_INVENTED
    tokens = [1.0] * len(common) + [intercept + slope * len(word) for word in invented]
    frequency = np.concatenate([(1 - share) * _zipf(len(common)), share * _zipf(num)])
    texts = pa.array([*common, *invented])
    return _Words(_capital(texts) if kind == "X" else texts, np.array(tokens), np.cumsum(frequency))


def _zipf(num: int) -> NDArray[np.float64]:
    frequency = (np.arange(num) + ZIPF_SHIFT) ** -ZIPF_EXPONENT
    return frequency / frequency.sum()


def _fill(
    patterns: str, num: int, words: dict[str, _Words], rng: np.random.Generator
) -> tuple[pa.StringArray, NDArray[np.float64]]:
    """`num` phrases of each pattern (they are separated by `|`) with words drawn, and their tokens."""
    texts, tokens = [], []
    for pattern in patterns.split("|"):
        pieces, length = [], np.zeros(num)
        for literal, kind, _, _ in string.Formatter().parse(pattern):
            pieces.append(pa.scalar(literal))
            length += len(literal.replace(":", " : ").split())
            if kind:
                # the last sum may fall short of 1 by a rounding
                drawn = np.minimum(np.searchsorted(words[kind].cumulative, rng.random(num)), len(words[kind].texts) - 1)
                pieces.append(words[kind].texts.take(pa.array(drawn)))
                length += words[kind].tokens[drawn]
        joined = pc.binary_join_element_wise(*pieces, "")
        texts.append(pc.replace_substring_regex(joined, r"\b([Aa]) ([aeiouAEIOU])", r"\1n \2"))
        tokens.append(length)
    return pa.concat_arrays(texts), np.concatenate(tokens)


def _some(
    phrases: tuple[pa.StringArray, NDArray[np.float64]], rng: np.random.Generator
) -> tuple[pa.StringArray, NDArray[np.float64]]:
    """`NUM_TITLE_PARTS` of them."""
    chosen = rng.permutation(len(phrases[0]))[:NUM_TITLE_PARTS]
    return phrases[0].take(pa.array(chosen)), phrases[1][chosen]


def _capital(texts: pa.StringArray) -> pa.StringArray:
    first, others = pc.utf8_slice_codeunits(texts, 0, 1), pc.utf8_slice_codeunits(texts, 1)
    return pc.binary_join_element_wise(pc.utf8_upper(first), others, "")


def _mix(values: U64) -> U64:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): neighbours in, independent bits out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _draw(keys: U64, stream: int) -> U64:
    """64 random bits for each key, others in each stream."""
    return _mix(keys + np.uint64(stream * GOLDEN & MASK))


def _uniform(random: U64, shift: int) -> NDArray[np.float64]:
    """16 of the random bits as a number from 0 to below 1."""
    return ((random >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.float64) / 65_536
