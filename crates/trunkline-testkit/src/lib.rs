//! Trunkline: testkit.
