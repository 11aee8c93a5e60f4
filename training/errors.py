"""What stops training, in words that say what to do."""


class TrainingError(Exception):
    """Base of all; the command prints it in one line and exits with 1."""


class DataError(TrainingError):
    """The pictures, the archive or the manifest cannot be used as they are."""


class RecipeError(TrainingError):
    """A recipe or an override of it has no meaning."""


class ExportError(TrainingError):
    """The bundle would be wrong, so it is not written."""
