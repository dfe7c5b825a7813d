//! Trunkline.

pub mod config;
