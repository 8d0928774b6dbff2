"""Messages in the words of a settings file: what a Python call is named there."""

import re

from bayesgmm.engines.registry import ENGINES

_OF_PYTHON = {
    r"\bgive one by fit_(\w+) or fit_(\w+)\b": r'run the engine "\1" or "\2" with more draws',
    r"\bfit_(\w+)\([^()]*\)": r'the engine "\1"',
    rf"\bfit_({'|'.join(ENGINES)})\b": r'the engine "\1"',
    r"\b(?:a )?conjugate_prior\b(?:\([^()]*\))?": 'kind = "conjugate" in [prior]',
    r"\b(?:a )?default_prior\b(?:\([^()]*\))?": 'kind = "weakly_informative" in [prior]',
    r"\bsee how the fit ended by diagnose\b": "see its findings",
    r"=True\b": "=true",
    r"=False\b": "=false",
}


def in_settings_words(sentence: str) -> str:
    """Replace calls and truth values of Python in a sentence by engines, keys and values of a settings file."""
    for python, words in _OF_PYTHON.items():
        sentence = re.sub(python, words, sentence)
    return sentence
