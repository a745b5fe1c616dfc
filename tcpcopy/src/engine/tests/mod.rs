//! Tests of the whole engine in virtual time.
