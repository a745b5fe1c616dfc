//! The program intercept: swallows responses and reports them to their owner.
