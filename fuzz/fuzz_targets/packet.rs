//! See [`fuzz::packet`].
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(packet);
