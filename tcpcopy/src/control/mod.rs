//! The authenticated control channel between tcpcopy and intercept.
