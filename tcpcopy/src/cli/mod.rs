//! Command lines of both programs: arguments as typed, and arguments as validated.
