"""The attacks, and which of them are run when."""

from connections import (
    few_open_files, invented_methods, protocol_errors, rapid_resets, silent_connections,
    silent_tls_handshakes, too_many_connections,
)
from load import greedy_caller, huge_prompts, overload, soak
from principals import three_principals
from transfers import cancelled_uploads, stalled_transfers

__all__ = ["SCENARIOS", "SHORT", "soak"]

SCENARIOS = [
    cancelled_uploads, silent_connections, silent_tls_handshakes, too_many_connections,
    few_open_files, stalled_transfers, invented_methods, rapid_resets, protocol_errors,
    huge_prompts, greedy_caller, overload, three_principals,
]

# Enough to see that each kind of protection works, in half a minute.
SHORT = [cancelled_uploads, too_many_connections, few_open_files, rapid_resets, protocol_errors]
