//! See [`fuzz::engine`].
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(engine);
