//! See [`fuzz::control`].
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(control);
