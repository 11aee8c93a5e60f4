"""Errors of training; each message says what is wrong and what to do."""


class TrainingError(Exception):
    """Base class; `leuko-train` prints the message on one line and exits with 1."""


class DataError(TrainingError):
    """The images, an archive, a manifest or a log cannot be used."""


class RecipeError(TrainingError):
    """A recipe, an override or a run's configuration is invalid or does not fit the run."""


class ExportError(TrainingError):
    """The bundle would be invalid and is not written."""
