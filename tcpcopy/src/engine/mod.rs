//! The sans-IO replay engine.
