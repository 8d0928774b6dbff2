"""The exception for invalid input."""


class InputError(ValueError):
    """An argument, a file or a setting that cannot be used; one line for the person who gave it, with the cure."""
