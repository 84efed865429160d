"""Named errors. Each message says what is wrong, what was expected and what came."""


class VlaReasonerError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigurationError(VlaReasonerError, ValueError):
    """A parameter, file or combination of components that cannot work; raised at configure."""


class ObservationError(VlaReasonerError, ValueError):
    """An observation, or a message that should become part of one, is unusable."""


class ActionChunkError(VlaReasonerError, ValueError):
    """An action chunk breaks its own specification (width, finiteness, time step)."""


class ModelError(VlaReasonerError, RuntimeError):
    """A learned model failed or answered with the wrong shape, type or a non-finite number."""


class SearchReportError(VlaReasonerError, ValueError):
    """Statistics or a tree of a search, in a message or file, that contradict themselves."""


class InstructionError(VlaReasonerError, ValueError):
    """An instruction that the policy does not know."""


class EpisodeError(VlaReasonerError, ValueError):
    """A recorded episode, or a set of them, is unusable: missing, corrupt, mixed or not finite."""


class BagError(VlaReasonerError, ValueError):
    """A recorded bag, or what is asked of it, is unusable: no bag, no such topic, another type."""


class KinematicsError(VlaReasonerError, ValueError):
    """A pose that the arm cannot reach within the tolerance asked for."""


class StatusError(VlaReasonerError, ValueError):
    """A controller's status that says what cannot be."""


class TrajectoryError(VlaReasonerError, ValueError):
    """A motion that breaks a limit; the message names joint, limit, time and value."""
