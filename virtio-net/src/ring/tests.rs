//! Ring tests
