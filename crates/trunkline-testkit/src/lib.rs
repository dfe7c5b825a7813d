//! The tests that every backend has to pass, and what they need: the conformance suite. Not published.

pub mod conformance;
