"""What the keeper refuses, beside what NVML does."""

from __future__ import annotations

from ..errors import DeployError


class KeeperError(DeployError):
    """The keeper did not do what it was asked for."""


class KeeperGoneError(KeeperError):
    """There is no keeper, or it went away; whatever was set is restored."""

    problem = "there is no keeper"
    remedy = "Start it (`python -m llmcluster.deploy.keeper --socket PATH`); what was set before is restored"


class LeaseError(KeeperError):
    """Only one process at a time may set limits."""

    problem = "this connection does not hold the lease"
    remedy = "Take it first, and beat in time; one process at a time can hold it"


class DeniedError(KeeperError):
    """This user may not talk to the keeper."""

    problem = "this user is not allowed here"
    remedy = "Start the keeper with `--allow-uid` of the user who runs the control loop"


class MalformedError(KeeperError):
    """A request that is none."""

    problem = "this is no request"
    remedy = "Send one JSON object a line, with the fields that the operation has and no others"
