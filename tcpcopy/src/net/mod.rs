//! What the programs need to know of, and do to, the host network: interfaces, routes, neighbours, sockets.
