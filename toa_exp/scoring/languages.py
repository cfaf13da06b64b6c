"""Tells the language of texts well enough to notice that rows of several were mixed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from toa_exp.errors import BadInput

_FUNCTION_WORDS = {
    "cs": "je se že na v to jsem jsou jako ale by byl pro při jeho který která nebo také není podle už jen",
    "de": "der die das und ist nicht ein eine mit für auf von dem den sich auch ich sie wir zu im war wird",
    "en": "the and of to is in that it for was with this are be not you on as have they but from at we",
    "es": "el los las que y en es por con para una del se no su como pero más fue está lo muy",
    "fi": "ja on ei se että oli hän mutta ovat kun myös niin joka mitä tämä vain ole sekä kuin",
    "fr": "le les des et est une que dans pour pas qui sur avec ce il elle sont du au nous vous mais",
    "hr": "je i u se da na su za nije bio od koji koja kao ali ili samo što sam smo biti",
    "is": "og að er ekki sem það á var með til hann hún við ég þetta fyrir eru um en frá",
    "it": "il che di è per non una sono con del della gli nel anche più ma come questo si lo",
    "nl": "de het een en van is niet dat op te zijn met voor ook aan er maar wij hij naar",
    "pl": "się nie w na jest to że z do jak jego który która ale był są dla przez tym od",
    "pt": "o os que e não uma um com para por em do da dos foi mais como mas são está",
    "ru": "и в не на что с он как это по но она я из был его для все они мы",  # noqa: RUF001
    "uk": "і в не на що з він як це але вона я та був його для всі вони ми є",  # noqa: RUF001
}  # fmt: skip
_LANGUAGES = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+")
_READ = 400  # words of a text
_CERTAIN = 2  # function words, and times as many as of any other language
_MIXED = 0.1  # a share of texts in another language: quotations make less
_SEVERAL = 3  # texts, fewer of which may be chance


def language(text: str) -> str | None:
    """The code of the language that a text's function words tell, None where they leave a doubt.

    Text with kana is Japanese; no other language without spaces between words is told.
    """
    if has_kana(text):
        return "ja"
    words = Counter(word.casefold() for word in _WORD.findall(text)[:_READ])
    found = sorted(
        ((sum(words[word] for word in own), name) for name, own in _LANGUAGES.items()), reverse=True
    )
    (most, first), (second, _) = found[:2]
    return first if most >= max(_CERTAIN, _CERTAIN * second) else None


def has_kana(text: str) -> bool:
    """Whether any letter is hiragana or katakana."""
    return any(unicodedata.name(letter, "").startswith(("HIRAGANA", "KATAKANA LETTER")) for letter in text)


def one_language(texts: Iterable[str], what: str) -> None:
    """Raises BadInput where many texts are in another language than most.

    Where most texts leave a doubt, theirs may be a language that is not known here: then nothing is said.
    """
    told = [language(text) for text in texts if text.strip()]
    counts = Counter(found for found in told if found is not None)
    if len(counts) < 2 or counts.total() < len(told) / 2:
        return
    (first, most), (other, fewer), *_ = counts.most_common()
    if fewer >= max(_SEVERAL, _MIXED * (most + fewer)):
        raise BadInput(
            f"the {what} are of several languages: {most} are in {first!r} and {fewer} in {other!r}, by "
            f"their function words. Score each language pair on its own"
        )
