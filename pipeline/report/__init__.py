"""One page about a run or several, that opens anywhere: no network, no server."""
