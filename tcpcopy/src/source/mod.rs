//! The program tcpcopy: workers that capture, replay and inject.
