"""Options: the ones that an answer names by text, letter or number."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from allo.tasks.answers.final_answer import MARKS, bare, said_in
from allo.tasks.answers.number_words import in_digits
from allo.tasks.answers.numerals import Quantity, parse_quantity
from allo.tasks.answers.phrases import YES_OR_NO, denies, shorter_readings, without_hedges
from allo.tasks.answers.units import is_measure

LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
# A letter in brackets, before a bracket, stop, comma, colon or dash, or alone; never the article in "A bottle".
_LETTER = re.compile(
    r"(?:(?:the\s+)?(?i:option|choice|letter|answer)\s+)?"
    r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])(?:[.):,;](?=\s|\W|$)|(?=\s+[-–—=:(]|\s*$)|\)))(.*)",
    re.DOTALL,
)
_STOPPED_LETTER = re.compile(
    r"[\s*_]*(?:(?:the\s+)?(?i:option|choice|letter|answer)\s+)?(?:\\boxed\s*\{[A-Za-z]\}|[A-Za-z])[*_]*\.[*_]*\s+(?=\S)"
)
_NAMED_LETTER = re.compile(r"\b(?i:option|choice|letter)\s+\(?([A-Z])\b|(?<!\w)[(\[]([A-Z])[)\]]")
_LETTERS_ALONE = re.compile(r"(?:[\s,;/&.()]|\b(?:and|or|both|maybe|perhaps|possibly|probably)\b|\b[A-Z]\b)+")
_PAIRS_OF_LETTERS = re.compile(r"(?:([A-Za-z])(?i:\1))+")
_ARTICLE = re.compile(r"\b(?:[Tt]he|THE|[Aa]n|a)\b|^\s*A\b(?=\s+\w)")
_TOKEN = re.compile(
    r"(?<!\w)[-+]?[$£€¥₹]?\d+(?:[.,:/–-]\d+)*[%$£€¥₹°]?(?![^\W_])"  # a number with its sign
    r"|[^\W_]+(?:\+\+|[+#]|-(?=[\s.,;:!?]|$))?"  # C++, C#, A-
    r"|(?:[^\w\s\x00-\x7f\u2000-\u200c\u200e-\u206f\u3000-\u303f]|\u200d)+"  # symbols and emoji
)
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_NUMBERED = re.compile(
    rf"(?:the\s+)?(?:(?:option|choice|answer)\s+(?:(?:number|no\.?)\s+|#)?[(\[]?([1-9]\d?)\b[)\].]?"
    rf"|({'|'.join(_ORDINALS)})\s+(?:option|choice|answer|one)\b"
    r"|[(\[]?([1-9])[)\]](?=\s|\W*$))"
    r"(?!\s*(?:or|and|[,/&–-])\s*(?:option|choice|the\b)?\s*[(\[#]?\d)(.*)",
    re.IGNORECASE | re.DOTALL,
)
_ROMAN = {
    numeral: Quantity(Fraction(value), ())
    for value, numeral in enumerate(["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X"], 1)
}
# Signs that distinguish formulas with the same words: a + b and a - b, x < 3 and x > 3, [1, 2) and (1, 2].
_FORMULA = re.compile(r"[<>=+*/^≤≥≠]|\s[-−]\s|^[\[(][^,]*,.*[\])]$")

Form = Callable[[str], str]


def named_options(line: str, choices: Sequence[str]) -> set[str]:
    """Return the options that an announced line names, each in the form of `identity`."""
    line = LATEX_TEXT.sub(r"\1", line)
    sentence = said_in(line, choices)
    for answer in (line, sentence):  # the line comes first, as an option's own text may hold a full stop
        for written in (answer, bare(answer), without_hedges(bare(answer))):
            if named := _written(written, choices):
                return named
    whole, sentence = without_hedges(sentence), without_hedges(bare(sentence))
    if (said := YES_OR_NO.match(sentence)) and said[1].lower() in map(identity, choices):
        return {said[1].lower()}  # "no" is a common word in what follows
    named = set[str]()
    for reading in (sentence, *shorter_readings(sentence), whole):  # an option may be a check mark
        named = _written(bare(reading), choices) or _named(reading, choices) or named
        if len(named) == 1:
            break
    return named | _beside_letter(line, choices)


def _beside_letter(line: str, choices: Sequence[str]) -> set[str]:
    """The option whose text, and nothing else, is the sentence after a letter and a full stop: "B. 14"."""
    found = _STOPPED_LETTER.match(line)
    if found is None:
        return set()
    return _written(bare(said_in(line[found.end() :], choices)), choices)


def _lettered(sentence: str, choices: Sequence[str]) -> str:
    """Replace an option's number at the start with its letter: "option 2", "the second one", "(2) fish".

    A bare number may be a result, so it stays. A bracketed one also stays if any option holds a digit.
    """
    found = _NUMBERED.match(in_digits(sentence))
    if found is None or (found[3] and re.search(r"\d", " ".join(choices))):
        return sentence
    place = int(found[1] or found[3] or 0) or _ORDINALS.index(found[2].lower()) + 1
    if place > len(choices) or Quantity(Fraction(place), ()) in map(parse_quantity, choices):
        return sentence
    return f"({chr(ord('A') + place - 1)}) {found[4]}"


def identity(option: str) -> str:
    """Return a form that all spellings of one option share, ignoring white space and the case of ordinary words.

    Case distinguishes other words: TT and Tt, MW and mW, AaBb and aabb.
    """
    return " ".join(map(_word, _exact(option).split()))


def _exact(text: str) -> str:
    return " ".join(text.strip().removesuffix(".").split())


def _word(word: str) -> str:
    bare_word = word.strip(".,;:!?\"'()")
    ordinary = bare_word.islower() or (len(bare_word) > 2 and (bare_word.istitle() or bare_word.isupper()))
    ordinary = ordinary or (len(bare_word) > 2 and bare_word[1:].islower())  # "Dentist's"
    ordinary = ordinary or bare_word in ("No", "NO")
    return word.casefold() if ordinary and not _PAIRS_OF_LETTERS.fullmatch(bare_word) else word


def _written(text: str, choices: Sequence[str]) -> set[str]:
    """Return the options that equal the whole text: exactly, otherwise ignoring case, otherwise as numbers."""
    said = parse_quantity(text, words=True)
    roman = _ROMAN if set(map(_exact, choices)) <= _ROMAN.keys() else {}
    ways: tuple[Callable[[str], bool], ...] = (
        lambda choice: _exact(choice) == _exact(text),
        lambda choice: identity(choice) == identity(text),
        lambda choice: bool(_FORMULA.search(choice)) and _closely(choice) == _closely(text),
        lambda choice: _exact(choice).casefold() == _exact(text).casefold() and _agrees(text, choice),
        lambda choice: (
            said is not None and said in (roman.get(_exact(choice)), parse_quantity(choice, words=True))
        ),
    )
    named = ({identity(choice) for choice in choices if way(choice)} for way in ways)
    return next(filter(None, named), set())


def _named(sentence: str, choices: Sequence[str]) -> set[str]:
    """Return the options that a sentence names by letter and by words; none if it denies anything."""
    sentence = _lettered(sentence, choices)
    letters = {chr(ord("A") + place): identity(choice) for place, choice in enumerate(choices)}
    lettered = _LETTER.fullmatch(sentence)
    first = (lettered[1] or lettered[2]).upper() if lettered is not None else ""
    if lettered is None or first not in letters:
        named, rest = set[str](), sentence
    elif meant := _with_initial(first, lettered[3], sentence, choices):
        named, rest = {meant}, sentence
    else:
        named, rest = {letters[first]}, lettered[3].lstrip(" -–—=:,.;")
        if _LETTERS_ALONE.fullmatch(rest):
            named |= {letters[letter] for letter in re.findall(r"[A-Z]", rest) if letter in letters}
    found = {letter for pair in _NAMED_LETTER.findall(rest) for letter in pair if letter}
    named |= {letters[letter] for letter in found if letter in letters}
    mentioned, remaining = _mentioned(rest, choices)
    if denies(remaining):
        return set()
    named |= mentioned
    said = parse_quantity(MARKS.sub("", sentence), words=True)
    return named or {
        identity(choice) for choice in choices if _same_quantity(said, parse_quantity(choice, words=True))
    }


def _with_initial(letter: str, rest: str, sentence: str, choices: Sequence[str]) -> str | None:
    """Return the option that begins a sentence such as "C. S. Lewis", whose letter is an initial; otherwise None."""
    own = choices[ord(letter) - ord("A")]
    after = _tokens(rest, str.casefold)
    if _begins(after, _tokens(own, str.casefold)):
        return None
    said = _tokens(sentence, str.casefold)
    for choice in sorted(choices, key=len, reverse=True):
        tokens = _tokens(choice, str.casefold)
        if _begins(said, tokens):
            return identity(choice)
        if len(tokens) > 1 and tokens[0].startswith(letter.lower()) and _begins(after, tokens[1:]):
            return identity(choice)  # A. Lincoln stands for Abraham Lincoln
    return None


def _begins(tokens: tuple[str, ...], with_those: tuple[str, ...]) -> bool:
    return bool(with_those) and tokens[: len(with_those)] == with_those


def _mentioned(sentence: str, choices: Sequence[str]) -> tuple[set[str], str]:
    """Return the options whose words occur in the sentence, and the rest of the sentence.

    Longer options come first, so that parts of them do not count. Case is ignored only if nothing matches with it. If
    a match disagrees with the sentence, no option is named.
    """
    for form in (_word, str.casefold):
        words = f" {' '.join(_tokens(sentence, form))} "
        found = set[str]()
        by_tokens: dict[tuple[str, ...], set[str]] = {}
        for choice in choices:
            by_tokens.setdefault(_tokens(choice, form), set()).add(identity(choice))
        for tokens in sorted(by_tokens, key=len, reverse=True):
            mention = f" {' '.join(tokens)} "
            if tokens and mention in words:
                words = words.replace(mention, " | ")
                found |= by_tokens[tokens]
        if found:
            return found if all(_agrees(sentence, option) for option in found) else set(), words
    return set(), sentence


def _agrees(sentence: str, option: str) -> bool:
    """Return whether an option states the same quantity or formula as the sentence, if it states one.

    5 m/s does not name the option "5 m", nor a - b "a + b", nor x^2 or ~x "x".
    """
    if _FORMULA.search(option):
        return _closely(option).casefold() in _closely(sentence).casefold()
    if re.fullmatch(r"[a-z]", option) and re.search(
        rf"[-\\^=<>+*/|~¬!(]\s*\{{?{option}\b(?!\))|\\[a-z]+\s*\{{?\s*{option}\b|\b{option}\s*[\^=<>+*/|_]"
        rf"|(?:\w|\b\w\s+)[(\[{{]\s*{option}\b|\b{option}[(\[{{]",
        sentence,
    ):
        return False
    if option in ("yes", "no"):  # "No one knows" and "no idea" do not name the option "no"
        return bool(re.search(rf"\b{option}\b(?!\s+(?!and\b|or\b|but\b)\w)", sentence, re.IGNORECASE))
    said, meant = parse_quantity(sentence), parse_quantity(option)
    if meant is None or (said is None and meant.unit and not is_measure(meant.unit)):
        return True
    parts = [sentence] if said else re.split(r"[,;:]\s|[().!?]|\s[-–—]\s", without_hedges(sentence))
    return any(_same_quantity(parse_quantity(part), meant) for part in parts)


def _same_quantity(said: Quantity | None, option: Quantity | None) -> bool:
    """Return whether two quantities are equal; 12% does not name the option "12"."""
    if said is None or option is None:
        return False
    if "%" in said.unit and "%" not in option.unit:
        return not option.unit and said.value == 100 * option.value
    return said.same(option)


def _closely(formula: str) -> str:
    """Return a formula without spaces, dollar signs and braces, its powers written with ^."""
    return re.sub(r"[\s${}]", "", formula.replace("**", "^"))


def _tokens(text: str, form: Form) -> tuple[str, ...]:
    """Return the words, numbers and symbols of a text without articles and punctuation."""
    text = re.sub(r"(?<=\w)['’](?=\w)|(?<=s)['’]", "", text)
    return tuple(map(form, _TOKEN.findall(_ARTICLE.sub(" ", text)) or _TOKEN.findall(text)))
